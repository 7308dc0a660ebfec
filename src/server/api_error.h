// What a client gets for a request that cannot be served: OpenAI's error object.
#pragma once

#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>
#include <utility>

#include "base/error.h"
#include "server/http.h"

namespace spear {

class ApiError : public std::runtime_error {
 public:
  /// type: "invalid_request_error", "authentication_error", "overloaded_error", "server_error", ...
  ApiError(int status, std::string type, const std::string& message, std::string param = {}, std::string code = {})
      : std::runtime_error(message),
        status_(status),
        type_(std::move(type)),
        param_(std::move(param)),
        code_(std::move(code)) {}

  int status() const { return status_; }
  const std::string& type() const { return type_; }
  const std::string& param() const { return param_; }

  nlohmann::json to_json() const {
    const auto text = [](const std::string& value) { return value.empty() ? nlohmann::json() : nlohmann::json(value); };
    return {{"error", {{"message", what()}, {"type", type_}, {"param", text(param_)}, {"code", text(code_)}}}};
  }

  HttpResponse response() const {
    HttpResponse response{
        status_, "application/json", to_json().dump(-1, ' ', false, nlohmann::json::error_handler_t::replace), {}};
    if (status_ == 429 || status_ == 503) response.headers.emplace_back("Retry-After", "1");
    if (status_ == 401) response.headers.emplace_back("WWW-Authenticate", "Bearer");
    return response;
  }

 private:
  int status_;
  std::string type_, param_, code_;
};

inline ApiError bad_request(const std::string& message, std::string param = {}, std::string code = {}) {
  return {400, "invalid_request_error", message, std::move(param), std::move(code)};
}

/// An error of the layers below, as the client's fault or ours.
inline ApiError api_error(const Error& error) {
  std::string message = error.problem();
  if (!error.remedy().empty()) message += "; " + error.remedy();
  switch (error.code()) {
    case ExitCode::usage:
    case ExitCode::bad_input:
    case ExitCode::out_of_resources:
      return bad_request(message, error.where());
    default:
      return {500, "server_error", message};
  }
}

}  // namespace spear
