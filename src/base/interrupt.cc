#include "base/interrupt.h"

#include <unistd.h>

#include <csignal>
#include <cstddef>

#include "base/error.h"

namespace spear {
namespace {

volatile std::sig_atomic_t signal_seen = 0;

void on_signal(int) {
  if (signal_seen != 0) _exit(static_cast<int>(ExitCode::interrupted));
  signal_seen = 1;
}

}  // namespace

void install_interrupt_handlers() {
  // On a stack of its own: kernels that oneDNN 2.6 generates keep data below the stack pointer, where a handler's frame would go
  // (heap corruption in one of twenty interrupted runs). Process-wide signals go to this thread, the first.
  alignas(16) static std::byte memory[1 << 16];
  const stack_t stack = {.ss_sp = memory, .ss_flags = 0, .ss_size = sizeof memory};
  sigaltstack(&stack, nullptr);
  struct sigaction action {};
  action.sa_handler = on_signal;
  action.sa_flags = SA_ONSTACK;
  sigemptyset(&action.sa_mask);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  std::signal(SIGPIPE, SIG_IGN);
}

bool interrupted() noexcept { return signal_seen != 0; }

void throw_if_interrupted() {
  if (interrupted()) {
    throw Error(ExitCode::interrupted, "interrupted", "", "run the same command again with --resume to continue");
  }
}

}  // namespace spear
