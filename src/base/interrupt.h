// SIGINT/SIGTERM become a flag that long loops poll, so that state is saved before the process leaves.
#pragma once

namespace spear {

/// Installs the handlers once; a second signal ends the process at once with 130.
void install_interrupt_handlers();

/// True after the first SIGINT or SIGTERM.
bool interrupted() noexcept;

/// Throws Error(ExitCode::interrupted) after a signal. Call it between units of work that can be resumed.
void throw_if_interrupted();

}  // namespace spear
