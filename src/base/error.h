// One exception type for everything that can go wrong: what, where, and how to fix it.
#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace spear {

/// Process exit codes; every Error carries the one the command line returns.
enum class ExitCode : int {
  ok = 0,
  failed = 1,
  usage = 2,
  bad_input = 3,
  out_of_resources = 4,
  quality_gate = 5,
  interrupted = 130,
};

/// An error with the three things a user needs. `where` names the file, tensor or option and may be empty;
/// `remedy` says what to do next and may be empty only where nothing can be done.
class Error : public std::runtime_error {
 public:
  Error(ExitCode code, std::string what, std::string where = {}, std::string remedy = {})
      : std::runtime_error(compose(what, where, remedy)),
        code_(code),
        what_(std::move(what)),
        where_(std::move(where)),
        remedy_(std::move(remedy)) {}

  ExitCode code() const noexcept { return code_; }
  const std::string& problem() const noexcept { return what_; }
  const std::string& where() const noexcept { return where_; }
  const std::string& remedy() const noexcept { return remedy_; }

 private:
  static std::string compose(const std::string& what, const std::string& where, const std::string& remedy) {
    std::string text = where.empty() ? what : where + ": " + what;
    return remedy.empty() ? text : text + "\n  fix: " + remedy;
  }

  ExitCode code_;
  std::string what_, where_, remedy_;
};

inline Error bad_input(std::string what, std::string where = {}, std::string remedy = {}) {
  return {ExitCode::bad_input, std::move(what), std::move(where), std::move(remedy)};
}
inline Error usage_error(std::string what, std::string where = {}, std::string remedy = {}) {
  return {ExitCode::usage, std::move(what), std::move(where), std::move(remedy)};
}
inline Error out_of_resources(std::string what, std::string where = {}, std::string remedy = {}) {
  return {ExitCode::out_of_resources, std::move(what), std::move(where), std::move(remedy)};
}
inline Error failed(std::string what, std::string where = {}, std::string remedy = {}) {
  return {ExitCode::failed, std::move(what), std::move(where), std::move(remedy)};
}

}  // namespace spear
