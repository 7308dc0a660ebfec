// Reading JSON Schema: what a schema says, with every keyword checked and every conjunction laid out.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/error.h"

namespace spear::constrain {

using Json = nlohmann::ordered_json;

/// A schema and where it stands ("#/properties/a").
struct Part {
  const Json* schema;
  std::string pointer;
};

/// A value must fit all of them.
using Parts = std::vector<Part>;

enum JsonType : unsigned {
  kNull = 1,
  kBoolean = 2,
  kObject = 4,
  kArray = 8,
  kNumber = 16,
  kString = 32,
  kInteger = 64
};
constexpr unsigned kAnyType = 127;

Error refuse_schema(const Part& part, const char* keyword, const std::string& problem, const std::string& remedy = {});

/// The value of a keyword, or null.
const Json* find_keyword(const Part& part, const char* keyword);
/// A number of things: whole and not negative.
std::optional<std::uint64_t> count_keyword(const Part& part, const char* keyword);
/// The bit of "integer" is set with that of "number".
unsigned types_of(const Part& part);
unsigned type_of(const Json& value);
std::string append_pointer(const std::string& pointer, const std::string& token);

/// Makes alternatives of schemas: lists without $ref, allOf, anyOf and oneOf.
class SchemaReader {
 public:
  SchemaReader(const Json& root, std::string base, bool strict)
      : root_(root), base_(std::move(base)), strict_(strict) {}

  /// Each list holds only objects, or the schema false; the value must fit one of the lists. Throws Error(bad_input)
  /// naming what is malformed or not supported.
  std::vector<Parts> alternatives(const Parts& parts) const;

 private:
  struct Choice {
    Part keyword;                        // the array
    std::vector<const Json*> ancestors;  // schemas that are open around it
  };
  struct Draft {
    Parts parts;
    std::vector<const Json*> seen;
    std::vector<Choice> choices;
  };

  void flatten(const Part& part, std::vector<const Json*>& ancestors, Draft& draft) const;
  void check(const Part& part) const;
  void check_strict(const Part& part) const;
  Part resolve(const Part& part) const;

  const Json& root_;
  std::string base_;
  bool strict_;
};

}  // namespace spear::constrain
