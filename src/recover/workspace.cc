#include "recover/workspace.h"

#include "base/error.h"
#include "base/file.h"
#include "base/log.h"

namespace spear {
namespace {

constexpr const char* kNotes = "notes";

}  // namespace

Workspace::Workspace(std::filesystem::path folder) : folder_(std::move(folder)) {
  std::error_code failure;
  std::filesystem::create_directories(folder_, failure);
  if (!std::filesystem::is_directory(folder_)) {
    throw failed("cannot create the folder for intermediate results", folder_.string(), "check that its parent is writable");
  }
}

std::filesystem::path Workspace::file(const std::string& stage, const nlohmann::json& inputs, const char* extension) const {
  return folder_ / (stage + "-" + sha256_hex(inputs.dump()).substr(0, 16) + extension);
}

std::optional<Safetensors> Workspace::load(const std::string& stage, const nlohmann::json& inputs) const {
  const auto path = file(stage, inputs, ".safetensors");
  if (!std::filesystem::exists(path)) return std::nullopt;
  try {
    return read_safetensors(path);
  } catch (const Error& error) {
    log::warn("{} is not usable and is made again ({})", path.string(), error.problem());
    return std::nullopt;
  }
}

void Workspace::save(const std::string& stage, const nlohmann::json& inputs, const TensorMap& tensors,
                     const nlohmann::json& notes) const {
  write_safetensors(file(stage, inputs, ".safetensors"), tensors, {{"inputs", inputs.dump()}, {kNotes, notes.dump()}});
}

std::optional<nlohmann::json> Workspace::load_json(const std::string& stage, const nlohmann::json& inputs) const {
  const auto path = file(stage, inputs, ".json");
  if (!std::filesystem::exists(path)) return std::nullopt;
  auto value = nlohmann::json::parse(read_text_file(path), nullptr, false);
  if (value.is_discarded()) return std::nullopt;
  return value;
}

void Workspace::save_json(const std::string& stage, const nlohmann::json& inputs, const nlohmann::json& value) const {
  write_file_atomic(file(stage, inputs, ".json"), value.dump(1));
}

void Workspace::remove(const std::string& stage, const nlohmann::json& inputs) const {
  std::error_code ignored;
  std::filesystem::remove(file(stage, inputs, ".safetensors"), ignored);
}

}  // namespace spear
