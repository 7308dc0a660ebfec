#include "io/group_index.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"

namespace spear {
namespace {

std::vector<std::int64_t> integers(const Tensor& tensor) {
  if (tensor.dtype() == DType::i64) return to_vector<std::int64_t>(tensor);
  const auto values = tensor.as<std::int32_t>();
  return {values.begin(), values.end()};
}

}  // namespace

std::vector<std::int32_t> take_group_index(TensorMap& tensors, const std::string& name, const W4Matrix& matrix,
                                           const std::string& where) {
  if (!tensors.contains(name)) return {};
  const auto stored = integers(take_tensor(tensors, name, {matrix.cols}, {DType::i32, DType::i64}, where));
  if (std::all_of(stored.begin(), stored.end(), [](std::int64_t group) { return group == -1; })) return {};
  std::vector<std::int64_t> members(static_cast<std::size_t>(matrix.groups()), 0);
  bool in_order = true;
  for (std::int64_t col = 0; col < matrix.cols; ++col) {
    const std::int64_t group = stored[static_cast<std::size_t>(col)];
    if (group < 0 || group >= matrix.groups()) {
      throw bad_input(fmt::format("input {} belongs to group {}, and there are {}", col, group, matrix.groups()),
                      where + ": " + name, "the file is damaged, or its config has another group_size; get it again");
    }
    ++members[static_cast<std::size_t>(group)];
    in_order &= group == matrix.group_of(col);
  }
  if (in_order) return {};
  for (std::int64_t group = 0; group < matrix.groups(); ++group) {
    const std::int64_t size = std::min(matrix.scheme.group_size, matrix.cols - group * matrix.scheme.group_size);
    if (members[static_cast<std::size_t>(group)] == size) continue;
    throw bad_input(
        fmt::format("group {} has {} inputs instead of {}", group, members[static_cast<std::size_t>(group)], size),
        where + ": " + name, "quantize with groups of equal size (desc_act true or false, any tool's default)");
  }
  return {stored.begin(), stored.end()};
}

Tensor stored_group_index(const W4Matrix& matrix) {
  Tensor groups(DType::i32, {matrix.cols});
  const auto values = groups.mutable_as<std::int32_t>();
  for (std::int64_t col = 0; col < matrix.cols; ++col)
    values[static_cast<std::size_t>(col)] = static_cast<std::int32_t>(matrix.group_of(col));
  return groups;
}

}  // namespace spear
