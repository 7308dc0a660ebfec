#include "constrain/string_formats.h"

namespace spear::constrain {
namespace {

// RFC 3339, leap years included; no leap seconds.
const std::string kDate =
    "(?:(?:000[1-9]|00[1-9]\\d|0[1-9]\\d\\d|[1-9]\\d\\d\\d)-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\\d|3[01])|(?:0[469]|"
    "11)-(?:0[1-9]|[12]\\d|30)|"
    "02-(?:0[1-9]|1\\d|2[0-8]))|(?:\\d\\d(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)-02-29)";
const std::string kTime = "(?:[01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(?:\\.\\d{1,9})?(?:Z|[+-](?:[01]\\d|2[0-3]):[0-5]\\d)";
const std::string kLabel = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,30}[A-Za-z0-9])?";
const std::string kByte = "(?:25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)";

}  // namespace

std::optional<std::string> format_pattern(std::string_view name) {
  if (name == "date") return "^" + kDate + "$";
  if (name == "time") return "^" + kTime + "$";
  if (name == "date-time") return "^" + kDate + "T" + kTime + "$";
  if (name == "uuid") return "^[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}$";
  if (name == "email")
    return "^[A-Za-z0-9_%+-]{1,32}(?:\\.[A-Za-z0-9_%+-]{1,32}){0,3}@" + kLabel + "(?:\\." + kLabel + "){1,3}$";
  if (name == "ipv4") return "^" + kByte + "(?:\\." + kByte + "){3}$";
  return std::nullopt;
}

}  // namespace spear::constrain
