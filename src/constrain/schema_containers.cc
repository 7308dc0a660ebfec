// Arrays and objects of the schema compiler.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <optional>

#include "constrain/byte_nfa.h"
#include "constrain/schema_compiler.h"

namespace spear::constrain {
namespace {

constexpr std::uint64_t kMostItems = 10'000;  // counted arrays; longer ones are never written

const Json kNever = false;

/// What is asked of item i: by prefixItems, or by items behind them.
Parts item_parts(const Parts& parts, std::size_t i) {
  Parts out;
  for (const Part& part : parts) {
    const Json* prefix = find_keyword(part, "prefixItems");
    if (prefix != nullptr && !prefix->is_array())
      throw refuse_schema(part, "prefixItems", "a list of schemas was expected");
    const Json* items = find_keyword(part, "items");
    if (items != nullptr && items->is_array())
      throw refuse_schema(part, "items", "a list of schemas is not supported", "use prefixItems");
    if (prefix != nullptr && i < prefix->size()) {
      out.push_back({&(*prefix)[i], append_pointer(append_pointer(part.pointer, "prefixItems"), std::to_string(i))});
    } else if (items != nullptr) {
      out.push_back({items, append_pointer(part.pointer, "items")});
    }
  }
  return out;
}

struct Property {
  std::string name;
  bool required = false;
};

/// In the order of the schemas; required names without a schema behind them.
std::vector<Property> properties_of(const Parts& parts) {
  std::vector<Property> out;
  std::map<std::string, std::size_t, std::less<>> index;
  const auto add = [&](const std::string& name) -> Property& {
    const auto [found, fresh] = index.try_emplace(name, out.size());
    if (fresh) out.push_back({name});
    return out[found->second];
  };
  for (const Part& part : parts) {
    const Json* properties = find_keyword(part, "properties");
    if (properties == nullptr) continue;
    if (!properties->is_object()) throw refuse_schema(part, "properties", "an object of schemas was expected");
    for (const auto& [name, schema] : properties->items()) add(name);
  }
  for (const Part& part : parts) {
    const Json* required = find_keyword(part, "required");
    if (required == nullptr) continue;
    if (!required->is_array()) throw refuse_schema(part, "required", "a list of names was expected");
    for (const Json& name : *required) {
      if (!name.is_string()) throw refuse_schema(part, "required", "a list of names was expected");
      add(name.get_ref<const std::string&>()).required = true;
    }
  }
  return out;
}

/// What is asked of a property; `name` null: of those that no schema names.
Parts property_parts(const Parts& parts, const std::string* name) {
  Parts out;
  for (const Part& part : parts) {
    const Json* properties = find_keyword(part, "properties");
    const Json* additional = find_keyword(part, "additionalProperties");
    if (name != nullptr && properties != nullptr && properties->contains(*name)) {
      out.push_back({&properties->at(*name), append_pointer(append_pointer(part.pointer, "properties"), *name)});
    } else if (additional != nullptr) {
      out.push_back({additional, append_pointer(part.pointer, "additionalProperties")});
    }
  }
  return out;
}

bool is_never(const Parts& parts) {
  return std::any_of(parts.begin(), parts.end(), [](const Part& part) { return *part.schema == kNever; });
}

}  // namespace

void SchemaCompiler::add_array(StateId from, StateId to, const Parts& parts) {
  std::uint64_t least = 0;
  std::optional<std::uint64_t> most;
  std::size_t prefix = 0;
  for (const Part& part : parts) {
    const std::uint64_t minimum = count_keyword(part, "minItems").value_or(0);
    if (minimum > kMostItems)
      throw refuse_schema(part, "minItems", fmt::format("more than {} is not supported", kMostItems));
    least = std::max(least, minimum);
    if (const auto maximum = count_keyword(part, "maxItems"))
      most = std::min({most.value_or(kMostItems), *maximum, kMostItems});
    if (const Json* items = find_keyword(part, "prefixItems"); items != nullptr && items->is_array())
      prefix = std::max(prefix, items->size());
  }
  if (prefix > kMostItems)
    throw refuse_schema(parts.front(), "prefixItems", fmt::format("more than {} is not supported", kMostItems));
  const Parts rest = item_parts(parts, prefix);
  if (is_never(rest)) most = std::min<std::uint64_t>(most.value_or(prefix), prefix);
  if (most && *most < least) return;
  if (parts.empty() || (rest.empty() && prefix == 0 && least == 0 && !most))
    return builder_.add_call(from, rules_.array(), to);
  const auto item_rule = [&](std::uint64_t i) { return i < prefix ? rule_of(item_parts(parts, i)) : rule_of(rest); };

  StateId behind = rules_.add_space(builder_.add_text(from, "["));  // behind i items
  const std::uint64_t last = most.value_or(std::max({static_cast<std::uint64_t>(prefix), least, std::uint64_t{1}}));
  for (std::uint64_t i = 0; i <= last; ++i) {
    if (i >= least) builder_.add_text(i == 0 ? behind : rules_.add_space(behind), "]", to);
    if (i == last && most) break;
    const StateId before = i == 0 ? behind : rules_.add_space(builder_.add_text(behind, ","));
    const StateId next = i == last ? behind : builder_.add_state();
    builder_.add_call(before, item_rule(i), next);
    behind = next;
  }
}

void SchemaCompiler::add_object(StateId from, StateId to, const Parts& parts) {
  const std::vector<Property> properties = properties_of(parts);
  const Parts additional = property_parts(parts, nullptr);
  const bool open = additional.empty() ? properties.empty() : !is_never(additional);
  std::uint64_t least = 0;
  const auto required = static_cast<std::uint64_t>(
      std::count_if(properties.begin(), properties.end(), [](const Property& p) { return p.required; }));
  for (const Part& part : parts) {
    const std::uint64_t minimum = count_keyword(part, "minProperties").value_or(0);
    if (minimum > std::max<std::uint64_t>(required, 1)) {
      throw refuse_schema(part, "minProperties", "more than the required properties is not supported",
                          "require them by name");
    }
    least = std::max(least, minimum);
    const auto maximum = count_keyword(part, "maxProperties");
    if (maximum && (open || *maximum < properties.size())) {
      throw refuse_schema(part, "maxProperties", "fewer than the schema names is not supported",
                          "leave it out, or set additionalProperties to false");
    }
  }
  if (properties.empty() && additional.empty() && least == 0) return builder_.add_call(from, rules_.object(), to);

  // reached_first: nothing was written yet; reached_later: something was, and a comma comes next.
  const StateId inside = rules_.add_space(builder_.add_text(from, "{"));
  const auto add_colon = [&](StateId key) { return rules_.add_space(builder_.add_text(key, ":")); };
  const auto add_comma = [&](StateId state) { return rules_.add_space(builder_.add_text(state, ",")); };
  std::optional<StateId> reached_first = inside, reached_later;
  for (const Property& property : properties) {
    const StateId key = builder_.add_state(), written = builder_.add_state();
    if (reached_first) builder_.add_jump(*reached_first, key);
    if (reached_later) builder_.add_jump(add_comma(*reached_later), key);
    const StateId value = add_colon(builder_.add_text(key, Json(property.name).dump()));
    add_value(value, written, property_parts(parts, &property.name));
    if (property.required) {
      reached_first.reset();
    } else if (reached_later) {
      builder_.add_jump(*reached_later, written);
    }
    reached_later = written;
  }
  if (open) {
    std::vector<std::string> names;
    for (const Property& property : properties) names.push_back(property.name);
    const StateId key = builder_.add_state(), colon = builder_.add_state(), written = builder_.add_state();
    if (reached_first) builder_.add_jump(*reached_first, key);
    if (reached_later) builder_.add_jump(*reached_later, written);
    builder_.add_jump(add_comma(written), key);
    add_other_key(key, colon, names);
    builder_.add_call(add_colon(colon), rule_of(additional), written);
    reached_later = written;
  }
  if (reached_first && least == 0) builder_.add_text(*reached_first, "}", to);
  if (reached_later) builder_.add_text(rules_.add_space(*reached_later), "}", to);
}

/// A key without escapes that is none of `names`: a walk through the tree of the names, until it is left.
void SchemaCompiler::add_other_key(StateId from, StateId to, const std::vector<std::string>& names) {
  if (names.empty()) return builder_.add_call(from, rules_.string(), to);
  // Characters as an automaton of bytes: 0 is between characters, `next` in the middle of one.
  struct Tree {
    std::map<std::uint8_t, std::size_t> next;
    bool is_name = false;
  };
  std::vector<Tree> tree(1);
  for (const std::string& name : names) {
    std::size_t at = 0;
    for (const char c : name) {
      const auto [found, fresh] = tree[at].next.try_emplace(static_cast<std::uint8_t>(c), tree.size());
      at = found->second;
      if (fresh) tree.emplace_back();
    }
    tree[at].is_name = true;
  }
  enum Place : std::uint8_t {
    kBetween,
    kOneMore,
    kTwoMore,
    kThreeMore,
    kAfterE0,
    kAfterED,
    kAfterF0,
    kAfterF4,
    kPlaces
  };
  struct Edge {
    std::uint8_t low, high;
    Place to;
  };
  static const std::map<Place, std::vector<Edge>> kUtf8{{kBetween,
                                                         {{0x20, 0x21, kBetween},
                                                          {0x23, 0x5B, kBetween},
                                                          {0x5D, 0x7F, kBetween},
                                                          {0xC2, 0xDF, kOneMore},
                                                          {0xE0, 0xE0, kAfterE0},
                                                          {0xE1, 0xEC, kTwoMore},
                                                          {0xED, 0xED, kAfterED},
                                                          {0xEE, 0xEF, kTwoMore},
                                                          {0xF0, 0xF0, kAfterF0},
                                                          {0xF1, 0xF3, kThreeMore},
                                                          {0xF4, 0xF4, kAfterF4}}},
                                                        {kOneMore, {{0x80, 0xBF, kBetween}}},
                                                        {kTwoMore, {{0x80, 0xBF, kOneMore}}},
                                                        {kThreeMore, {{0x80, 0xBF, kTwoMore}}},
                                                        {kAfterE0, {{0xA0, 0xBF, kOneMore}}},
                                                        {kAfterED, {{0x80, 0x9F, kOneMore}}},
                                                        {kAfterF0, {{0x90, 0xBF, kTwoMore}}},
                                                        {kAfterF4, {{0x80, 0x8F, kTwoMore}}}};
  constexpr std::size_t kOutside = ~std::size_t{0};
  std::map<std::pair<std::size_t, Place>, StateId> known;
  std::vector<std::pair<std::size_t, Place>> todo;
  const auto state_of = [&](std::size_t node, Place place) {
    const auto [found, fresh] = known.try_emplace({node, place}, 0);
    if (fresh) {
      found->second = builder_.add_state();
      todo.emplace_back(node, place);
    }
    return found->second;
  };
  builder_.add_byte(from, '"', '"', state_of(0, kBetween));
  while (!todo.empty()) {
    const auto [node, place] = todo.back();
    todo.pop_back();
    const StateId state = known.at({node, place});
    if (place == kBetween && (node == kOutside || !tree[node].is_name)) builder_.add_byte(state, '"', '"', to);
    for (const Edge& edge : kUtf8.at(place)) {
      unsigned low = edge.low;
      if (node != kOutside) {
        for (const auto& [byte, next] : tree[node].next) {
          if (byte < edge.low || byte > edge.high) continue;
          if (low < byte)
            builder_.add_byte(state, static_cast<std::uint8_t>(low), byte - 1U, state_of(kOutside, edge.to));
          builder_.add_byte(state, byte, byte, state_of(next, edge.to));
          low = byte + 1U;
        }
      }
      if (low <= edge.high)
        builder_.add_byte(state, static_cast<std::uint8_t>(low), edge.high, state_of(kOutside, edge.to));
    }
  }
}

}  // namespace spear::constrain
