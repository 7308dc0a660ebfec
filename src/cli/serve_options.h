// Options of `spear serve`: from the command line, the environment (SPEAR_PORT for --port) or a file, in this order.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

#include "cli/scheduler_options.h"
#include "server/server.h"

namespace spear::cli {

struct ServeOptions {
  ServerOptions server;
  std::string served_name, key_file;
  std::string log_format = "text";
  std::string chat_template, tool_format = "auto";
  std::uint64_t kv_cache_bytes = std::uint64_t{1} << 30;
  std::int64_t max_num_seqs = 32, max_model_len = 0, max_batched_tokens = 512;
  bool prefix_caching = true;
  SchedulingOptions scheduling;
};

void add_serve_options(CLI::App& command, ServeOptions& options);

/// Every option of the command can be given by SPEAR_ and its name from here on.
void take_environment(CLI::App& command);

/// What holds in the end, one line in the log; keys are counted, not shown.
void log_config(const CLI::App& command);

}  // namespace spear::cli
