#include "base/interrupt.h"

#include <unistd.h>

#include <csignal>

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
  struct sigaction action {};
  action.sa_handler = on_signal;
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
