// A task file (JSON lines) from anybody.
#include "eval/tasks.h"
#include "fuzz_file.h"

using namespace spear;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const fuzz::Directory directory;
  const auto path = directory.write("task.jsonl", fuzz::as_text(data, size));
  fuzz::survives([&] {
    const Task task = read_task(path);
    if (task.items.empty()) std::abort();
    for (const TaskItem& item : task.items) {
      const bool placed =
          task.kind == TaskKind::last_word || (item.gold >= 0 && item.gold < static_cast<std::int64_t>(item.options()));
      if (!placed || item.contexts.empty() || item.continuations.empty()) std::abort();
    }
  });
  return 0;
}
