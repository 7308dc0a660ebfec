// The parsed form of a template.
#pragma once

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "text/jinja_value.h"

namespace spear::jinja {

struct Position {
  int line = 1, column = 1;
};

struct Node;
using NodePtr = std::unique_ptr<Node>;

enum class NodeKind {
  literal,      // value
  name,         // name
  list,         // children
  dict,         // children: key, value, key, value, ...
  attribute,    // children[0].name
  subscript,    // children[0][children[1]]
  slice,        // children[0][children[1]:children[2]:children[3]], bounds may be null
  call,         // name(children...), a global function
  method,       // children[0].name(children[1...])
  filter,       // children[0] | name(children[1...])
  test,         // children[0] is name(children[1...])
  negate,       // -children[0]
  logical_not,  // not children[0]
  logical_and,
  logical_or,
  binary,       // children[0] name children[1], for + - * / // % ~
  compare,      // children[0] operators[0] children[1] operators[1] ...
  conditional,  // children[0] if children[1] else children[2] (may be null)
};

/// An expression.
struct Node {
  NodeKind kind;
  Position at;
  std::string name;
  Value value;
  std::vector<NodePtr> children;
  std::vector<std::pair<std::string, NodePtr>> keywords;  // of call, method, filter, test
  std::vector<std::string> operators;                     // of compare
  int depth = 1;                                          // of the tree below: evaluation is recursive
};

struct Statement;
struct Branch;

struct Block {
  std::vector<Statement> statements;
};

enum class StatementKind { text, output, set, conditional, loop, scope };

struct Statement {
  StatementKind kind;
  Position at;
  std::string text;                  // text; of set: the attribute of a namespace, or empty
  std::vector<std::string> targets;  // set, loop
  NodePtr value;                     // output, set, loop: what is iterated
  NodePtr condition;                 // loop: the `if` behind it, may be null
  std::vector<Branch> branches;      // conditional, loop, scope
};

/// Of a conditional; null condition: else. Of a loop: {null, body}, maybe {null, else}. Of a scope: {null, body}.
struct Branch {
  NodePtr condition;
  Block body;
};

}  // namespace spear::jinja
