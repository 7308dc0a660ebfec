#include "base/interrupt.h"

#include <gtest/gtest.h>

#include <csignal>

namespace spear {
namespace {

TEST(InterruptTest, HandlersHaveAStackOfTheirOwn) {
  struct sigaction before[2];
  sigaction(SIGINT, nullptr, &before[0]);
  sigaction(SIGTERM, nullptr, &before[1]);
  stack_t stack_before{};
  sigaltstack(nullptr, &stack_before);
  install_interrupt_handlers();
  for (const int signal : {SIGINT, SIGTERM}) {
    struct sigaction now {};
    ASSERT_EQ(sigaction(signal, nullptr, &now), 0);
    EXPECT_NE(now.sa_flags & SA_ONSTACK, 0) << signal;
  }
  stack_t stack{};
  ASSERT_EQ(sigaltstack(nullptr, &stack), 0);
  EXPECT_EQ(stack.ss_flags & SS_DISABLE, 0);
  EXPECT_GE(stack.ss_size, static_cast<std::size_t>(SIGSTKSZ));
  EXPECT_FALSE(interrupted());
  std::raise(SIGTERM);
  EXPECT_TRUE(interrupted());
  EXPECT_THROW(throw_if_interrupted(), std::exception);
  sigaction(SIGINT, &before[0], nullptr);
  sigaction(SIGTERM, &before[1], nullptr);
  sigaltstack(&stack_before, nullptr);
}

}  // namespace
}  // namespace spear
