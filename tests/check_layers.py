#!/usr/bin/env python3
"""Dependencies point one way: every #include of src/ follows the graph that CMake links, and the graph keeps its promises.

    tests/check_layers.py               check the tree
    tests/check_layers.py --self-test   planted violations must be found
"""

import re
import sys
import tempfile
from pathlib import Path

OFFLINE = {"torch", "quant", "recover"}
# What a folder must never depend on, whatever CMakeLists.txt says (docs/architecture.md).
NEVER = {
    **{name: OFFLINE | {"eval", "engine", "server"} for name in ("base", "tensor", "compensator", "model", "io", "text", "ops", "constrain")},
    "engine": OFFLINE | {"eval"},
    "eval": OFFLINE,
    "report": OFFLINE,
    "server": OFFLINE | {"eval"},
    "torch": {"quant", "recover", "eval"},
    "quant": {"recover"},
}
NEVER["base"] |= {"tensor"}
TORCH_HEADER = re.compile(r"(torch|ATen|c10|caffe2)/")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]', re.MULTILINE)


def libraries(text: str) -> dict[str, set[str]]:
    """spear_library(NAME DEPS spear_X ...) -> {NAME: {X, ...}}."""
    graph = {}
    for name, deps in re.findall(r"spear_library\(\s*(\w+)\s+DEPS([^)]*)\)", text):
        graph[name] = set(re.findall(r"\bspear_(?!libtorch)(\w+)", deps))
    return graph


def program(text: str, name: str) -> set[str]:
    """Every target_link_libraries(NAME PRIVATE spear_X ...) -> {X, ...} without spear_cli."""
    found = re.findall(rf"target_link_libraries\(\s*{name}\s+PRIVATE([^)]*)\)", text)
    return set(re.findall(r"\bspear_(\w+)", " ".join(found))) - {"cli"}


def closure(graph: dict[str, set[str]], roots: set[str]) -> set[str]:
    seen, todo = set(), list(roots)
    while todo:
        name = todo.pop()
        if name not in seen:
            seen.add(name)
            todo.extend(graph.get(name, ()))
    return seen


def graph_problems(graph: dict[str, set[str]], folders: set[str]) -> list[str]:
    problems = []
    for name, deps in graph.items():
        below = closure(graph, deps)
        if name in below:
            problems.append(f"CMakeLists.txt: {name} depends on itself")
        for dep in sorted(deps - set(graph)):
            problems.append(f"CMakeLists.txt: {name} depends on {dep}, which is no library")
        for forbidden in sorted(below & NEVER.get(name, set())):
            problems.append(f"CMakeLists.txt: {name} must not depend on {forbidden}")
    problems += [f"src/{name}: no spear_library in CMakeLists.txt" for name in sorted(folders - set(graph) - {"cli"})]
    return problems


def include_problems(root: Path, path: Path, allowed: set[str], torch: bool) -> list[str]:
    problems, folder = [], path.relative_to(root / "src").parts[0]
    text = path.read_text(encoding="utf-8")
    for found in INCLUDE.finditer(text):
        where = f"{path.relative_to(root)}:{text.count(chr(10), 0, found.start()) + 1}"
        bracket, name = found.groups()
        ours = (root / "src" / name).is_file()
        if bracket == '"' and not ours:
            problems.append(f'{where}: "{name}" is not a path below src/')
        elif ours and name.split("/")[0] not in allowed | {folder}:
            problems.append(f"{where}: {folder} must not include {name}")
        elif not ours and TORCH_HEADER.match(name) and not torch:
            problems.append(f"{where}: {folder} must not include <{name}>")
    return problems


def check(root: Path) -> list[str]:
    graph = libraries((root / "CMakeLists.txt").read_text(encoding="utf-8"))
    cli = (root / "src/cli/CMakeLists.txt").read_text(encoding="utf-8")
    online, offline = closure(graph, program(cli, "spear")), closure(graph, program(cli, "spear-offline"))
    problems = graph_problems(graph, {p.name for p in (root / "src").iterdir() if p.is_dir()})
    problems += [f"src/cli/CMakeLists.txt: the online program must not link {name}" for name in sorted(online & OFFLINE)]
    for path in sorted((root / "src").rglob("*")):
        if path.suffix not in {".h", ".cc", ".inc", ".cu", ".cuh"}:
            continue
        folder = path.relative_to(root / "src").parts[0]
        if folder == "cli":
            is_offline = path.name.startswith("offline")
            problems += include_problems(root, path, offline if is_offline else online, is_offline)
        else:
            problems += include_problems(root, path, closure(graph, graph.get(folder, set())), folder in OFFLINE)
    return problems


def self_test() -> list[str]:
    cmake = ("spear_library(base DEPS fmt::fmt)\nspear_library(torch DEPS spear_base spear_libtorch)\n"
             "spear_library(recover DEPS spear_torch)\nspear_library(engine DEPS spear_base)\n")
    cli = ("target_link_libraries(spear PRIVATE spear_cli spear_engine)\n"
           "target_link_libraries(spear-offline PRIVATE spear_cli spear_recover spear_engine)\n")
    good = {"CMakeLists.txt": cmake, "src/cli/CMakeLists.txt": cli, "src/base/a.h": "#pragma once\n",
            "src/torch/t.h": "#include <torch/torch.h>\n#include \"base/a.h\"\n", "src/recover/r.h": '#include "torch/t.h"\n',
            "src/engine/e.h": '#include "base/a.h"\n', "src/cli/main.cc": '#include "engine/e.h"\n',
            "src/cli/offline.cc": '#include <torch/torch.h>\n#include "recover/r.h"\n'}
    planted = {
        "an include upwards": {"src/base/a.h": '#include "engine/e.h"\n'},
        "engine includes torch": {"src/engine/e.h": "#include <torch/torch.h>\n"},
        "engine includes a folder of the offline plane": {"src/engine/e.h": '#include "recover/r.h"\n'},
        "engine links the offline plane": {"CMakeLists.txt": cmake.replace("engine DEPS spear_base", "engine DEPS spear_recover")},
        "the online program links torch": {"src/cli/CMakeLists.txt": cli.replace("spear_engine)", "spear_torch)", 1)},
        "an online command includes the offline plane": {"src/cli/main.cc": '#include "recover/r.h"\n'},
        "a folder without a library": {"src/stray/s.h": "\n"},
        "a relative include": {"src/base/b.cc": '#include "a.h"\n'},
        "a cycle": {"CMakeLists.txt": cmake.replace("base DEPS fmt::fmt", "base DEPS spear_engine")},
        "an include of the command line": {"src/cli/c.h": "\n", "src/engine/e.h": '#include "cli/c.h"\n'},
    }
    problems = []
    for name, changes in {"nothing": {}, **planted}.items():
        with tempfile.TemporaryDirectory() as folder:
            for path, text in {**good, **changes}.items():
                (Path(folder) / path).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / path).write_text(text, encoding="utf-8")
            found = check(Path(folder))
        if bool(found) != (name != "nothing"):
            problems.append(f"self-test: planted {name}, found {found or 'nothing'}")
    return problems


def main() -> int:
    if len(sys.argv) > 2 or (len(sys.argv) == 2 and sys.argv[1] != "--self-test"):
        print(__doc__, file=sys.stderr if sys.argv[1] not in ("-h", "--help") else sys.stdout)
        return 0 if sys.argv[1] in ("-h", "--help") else 2
    problems = self_test() if len(sys.argv) == 2 else check(Path(__file__).resolve().parents[1])
    print("\n".join(problems) or "layers: ok")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
