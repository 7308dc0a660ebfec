#include "text/jinja_interpreter.h"

#include <algorithm>
#include <map>

#include "base/error.h"
#include "text/jinja_builtins.h"
#include "text/jinja_lexer.h"

namespace spear::jinja {
namespace {

class Interpreter {
 public:
  Interpreter(const TemplateLimits& limits, const std::tm& date) : budget_(limits), date_(date) {}

  std::string run(const Block& root, const Variables& variables) {
    scopes_.emplace_back();
    located({}, [&] {
      for (const auto& [name, value] : variables) scopes_.back()[name] = budget_.from_json(*value);
    });
    scopes_.emplace_back();
    execute(root);
    return std::move(out_);
  }

 private:
  /// Runs `action`; a Problem becomes an Error at `at`.
  template <typename Action>
  auto located(Position at, const Action& action) -> decltype(action()) {
    try {
      return action();
    } catch (const Problem& problem) {
      throw error_at(at, problem.text);
    }
  }

  // ---- statements

  void execute(const Block& block) {
    for (const Statement& statement : block.statements) {
      located(statement.at, [&] { execute(statement); });
    }
  }

  void execute(const Statement& statement) {
    budget_.step();
    switch (statement.kind) {
      case StatementKind::text:
        return append(statement.text);
      case StatementKind::output:
        return append(to_text(evaluate(*statement.value)));
      case StatementKind::set:
        return assign(statement);
      case StatementKind::conditional:
        for (const auto& [condition, body] : statement.branches) {
          if (condition == nullptr || truth(evaluate(*condition))) return execute(body);
        }
        return;
      case StatementKind::loop:
        return loop(statement);
      case StatementKind::scope:
        scopes_.emplace_back();
        execute(statement.branches[0].body);
        scopes_.pop_back();
    }
  }

  void append(const std::string& text) {
    budget_.step(text.size() / 64);
    budget_.check_output(out_.size() + text.size());
    out_ += text;
  }

  void assign(const Statement& statement) {
    Value value = evaluate(*statement.value);
    const std::string& name = statement.targets[0];
    if (statement.text.empty()) {
      scopes_.back()[name] = std::move(value);
      return;
    }
    const Value target = lookup(name);
    const auto* space = std::get_if<std::shared_ptr<Namespace>>(&target.data);
    if (space == nullptr) throw Problem{"'" + name + "' is not a namespace; only those have members that can be set"};
    if (value.is<std::shared_ptr<Namespace>>()) throw Problem{"a namespace can't hold a namespace"};
    (**space)[statement.text] = std::move(value);
  }

  void loop(const Statement& statement) {
    List items = elements(evaluate(*statement.value), budget_);
    if (statement.condition != nullptr) {
      List kept;
      for (Value& item : items) {
        scopes_.emplace_back();
        bind(statement, item);
        if (truth(evaluate(*statement.condition))) kept.push_back(std::move(item));
        scopes_.pop_back();
      }
      items = std::move(kept);
    }
    if (items.empty() && statement.branches.size() == 2) return execute(statement.branches[1].body);
    for (std::size_t i = 0; i < items.size(); ++i) {
      budget_.step(8);  // about what the loop variable costs
      scopes_.emplace_back();
      scopes_.back()["loop"] = loop_variable(items, i);
      bind(statement, items[i]);
      execute(statement.branches[0].body);
      scopes_.pop_back();
    }
  }

  void bind(const Statement& statement, const Value& item) {
    if (statement.targets.size() == 1) {
      scopes_.back()[statement.targets[0]] = item;
      return;
    }
    const List parts = elements(item, budget_);
    if (parts.size() != statement.targets.size()) {
      throw Problem{"the loop has " + std::to_string(statement.targets.size()) + " names for " +
                    std::to_string(parts.size()) + " values"};
    }
    for (std::size_t i = 0; i < parts.size(); ++i) scopes_.back()[statement.targets[i]] = parts[i];
  }

  Value loop_variable(const List& items, std::size_t i) {
    const auto index = static_cast<std::int64_t>(i), size = static_cast<std::int64_t>(items.size());
    const Value none = {Undefined{"the neighbour in the loop"}};
    auto members = std::make_shared<Namespace>(Namespace{{"index0", {index}},
                                                         {"index", {index + 1}},
                                                         {"revindex0", {size - index - 1}},
                                                         {"revindex", {size - index}},
                                                         {"first", {index == 0}},
                                                         {"last", {index + 1 == size}},
                                                         {"length", {size}},
                                                         {"previtem", i > 0 ? items[i - 1] : none},
                                                         {"nextitem", i + 1 < items.size() ? items[i + 1] : none}});
    return {std::move(members)};
  }

  // ---- expressions

  Value lookup(const std::string& name) const {
    for (auto scope = scopes_.rbegin(); scope != scopes_.rend(); ++scope) {
      if (const auto found = scope->find(name); found != scope->end()) return found->second;
    }
    return is_function(name) ? Value{Function{name}} : Value{Undefined{name}};
  }

  Value evaluate(const Node& node) {
    return located(node.at, [&] {
      budget_.step();
      return compute(node);
    });
  }

  Value compute(const Node& node) {
    const auto child = [&](std::size_t i) { return evaluate(*node.children[i]); };
    switch (node.kind) {
      case NodeKind::literal:
        return node.value;
      case NodeKind::name:
        return lookup(node.name);
      case NodeKind::list:
      case NodeKind::dict:
        return collection(node);
      case NodeKind::attribute:
        return subscript(child(0), budget_.text(node.name), budget_);
      case NodeKind::subscript:
        return subscript(child(0), child(1), budget_);
      case NodeKind::slice:
        return slice_of(node);
      case NodeKind::call:
      case NodeKind::method:
      case NodeKind::filter:
      case NodeKind::test:
        return call(node);
      case NodeKind::negate:
        return apply_binary("-", {std::int64_t{0}}, child(0), budget_);
      case NodeKind::logical_not:
        return {!truth(child(0))};
      case NodeKind::logical_and:
      case NodeKind::logical_or: {
        Value left = child(0);  // the result is one of the operands, as in Python
        return truth(left) == (node.kind == NodeKind::logical_or) ? left : child(1);
      }
      case NodeKind::binary: {
        const Value left = child(0);
        return apply_binary(node.name, left, child(1), budget_);
      }
      case NodeKind::compare:
        return compare(node);
      case NodeKind::conditional:
        if (truth(child(1))) return child(0);
        return node.children[2] != nullptr ? child(2) : Value{Undefined{"the other branch"}};
    }
    throw Problem{"an expression of unknown kind"};
  }

  Value collection(const Node& node) {
    if (node.kind == NodeKind::list) {
      List items;
      for (const NodePtr& item : node.children) items.push_back(evaluate(*item));
      return budget_.list(std::move(items));
    }
    Dict items;
    for (std::size_t i = 0; i < node.children.size(); i += 2) {
      const Value key = evaluate(*node.children[i]);
      if (key.text() == nullptr) throw Problem{"keys must be texts, not " + type_name(key)};
      Value value = evaluate(*node.children[i + 1]);
      budget_.step(items.size() / 16);  // keys are compared one after another
      const auto same =
          std::find_if(items.begin(), items.end(), [&](const auto& item) { return item.first == *key.text(); });
      if (same != items.end()) {
        same->second = std::move(value);
      } else {
        items.emplace_back(*key.text(), std::move(value));
      }
    }
    return budget_.dict(std::move(items));
  }

  Value slice_of(const Node& node) {
    const Value object = evaluate(*node.children[0]);
    Value bounds[3];
    const Value* given[3] = {};
    for (std::size_t i = 0; i < 3; ++i) {
      if (node.children[i + 1] == nullptr) continue;
      bounds[i] = evaluate(*node.children[i + 1]);
      given[i] = &bounds[i];
    }
    return slice(object, given[0], given[1], given[2], budget_);
  }

  Value call(const Node& node) {
    const bool function = node.kind == NodeKind::call;
    const Value subject = function ? lookup(node.name) : evaluate(*node.children[0]);
    if (function && !subject.is<Function>()) throw Problem{"'" + node.name + "' is not a function that SPEAR provides"};
    Arguments arguments;
    for (std::size_t i = function ? 0 : 1; i < node.children.size(); ++i) {
      arguments.positional.push_back(evaluate(*node.children[i]));
    }
    for (const auto& [name, value] : node.keywords) arguments.keywords.emplace_back(name, evaluate(*value));
    if (function) return call_function(std::get<Function>(subject.data).name, arguments, date_, budget_);
    if (node.kind == NodeKind::filter) return apply_filter(node.name, subject, arguments, budget_);
    if (node.kind == NodeKind::test) return {apply_test(node.name, subject, arguments, budget_)};
    return call_method(node.name, subject, arguments, budget_);
  }

  Value compare(const Node& node) {
    Value left = evaluate(*node.children[0]);
    for (std::size_t i = 0; i < node.operators.size(); ++i) {
      Value right = evaluate(*node.children[i + 1]);
      if (!holds(node.operators[i], left, right)) return {false};
      left = std::move(right);
    }
    return {true};
  }

  bool holds(const std::string& operation, const Value& left, const Value& right) {
    if (operation == "==") return equal(left, right, budget_);
    if (operation == "!=") return !equal(left, right, budget_);
    if (operation == "in") return contains(right, left, budget_);
    if (operation == "not in") return !contains(right, left, budget_);
    if (operation == "<") return less(left, right, budget_);
    if (operation == ">") return less(right, left, budget_);
    if (operation == "<=") return less(left, right, budget_) || equal(left, right, budget_);
    return less(right, left, budget_) || equal(left, right, budget_);
  }

  Budget budget_;
  std::tm date_;
  std::vector<std::map<std::string, Value, std::less<>>> scopes_;
  std::string out_;
};

}  // namespace

std::string interpret(const Block& root, const Variables& variables, const TemplateLimits& limits,
                      const std::tm& date) {
  return Interpreter(limits, date).run(root, variables);
}

}  // namespace spear::jinja
