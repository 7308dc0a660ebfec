// How fast these cores can read memory: the roofline that decoding is held against.
#pragma once

namespace spear {

/// Best read rate in GB/s (1e9 bytes) of `threads` threads over 512 MiB, of several streams per thread and of normal
/// and huge pages; takes about a second per thread count. An engine cannot exceed it on weights that miss the cache.
/// Throws Error(out_of_resources) when the memory is not there.
double probe_read_bandwidth(int threads);

}  // namespace spear
