#!/usr/bin/env python3
"""lm-evaluation-harness against the running server gives the accuracies of `spear eval --tasks`.

    pip install 'lm-eval[api]' transformers
    tests/server/check_lm_eval.py --model recovered --tasks arc_easy.jsonl copa.jsonl --limit 100

Its `local-completions` sends token ids with echo, logprobs and max_tokens 1 and reads the prompt's log-probabilities back:
the whole way of a request is under test. Tasks are files as `spear eval` takes them, multiple choice. Needs no network; not
part of scripts/test. Exit code 1 where accuracies differ by more than --most-difference.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
sys.path.append(str(Path(__file__).parent))
from harness import BINARY, Server  # noqa: E402


def write_task(source: Path, limit: int, directory: Path) -> str:
    """A task of lm-eval over the first lines of the file, with the prompts of `spear eval`."""
    lines = [json.loads(line) for line in source.read_text().splitlines() if line.strip()][:limit]
    rows = []
    for line in lines:
        query = line["query"]
        rows.append({"text": query.rstrip("\n ") + "\nAnswer:" if query.startswith("Question:") else query,
                     "options": line["choices"], "label": line["gold"]})
    data = directory / f"{source.stem}.json"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    name = f"local_{source.stem}"
    (directory / f"{name}.yaml").write_text(json.dumps({  # JSON is YAML
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(data)}}, "test_split": "test",
        "output_type": "multiple_choice", "doc_to_text": "{{text}}", "doc_to_choice": "{{options}}", "doc_to_target": "label",
        "metric_list": [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")]}))
    return name


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="a Hugging Face directory or SPEAR checkpoint: lm-eval needs its tokenizer.json")
    parser.add_argument("--tasks", type=Path, nargs="+", required=True)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--most-difference", type=float, default=0.01, help="of an accuracy; ties fall either way")
    args = parser.parse_args()
    import lm_eval
    from lm_eval.tasks import TaskManager

    # As the server computes by default.
    command = [BINARY, "eval", "--model", args.model, "--limit", str(args.limit), "--activations", "a16", "--kv-cache-dtype", "bf16", "--json", "--quiet"]
    for path in args.tasks:
        command += ["--tasks", path]
    ours = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    with tempfile.TemporaryDirectory() as directory, Server("--no-request-log", "--max-model-len", "2048", "--kv-cache-memory", "256MB",
                                                            path=args.model.resolve()) as server:
        names = [write_task(path, args.limit, Path(directory)) for path in args.tasks]
        theirs = lm_eval.simple_evaluate(
            model="local-completions", tasks=names, task_manager=TaskManager(include_path=directory, include_defaults=False), bootstrap_iters=0,
            model_args={"base_url": server.url + "/v1/completions", "model": json.loads(server.get("/v1/models")[2])["data"][0]["id"],
                        "tokenizer": str(args.model.resolve()), "tokenizer_backend": "huggingface", "num_concurrent": 4, "batch_size": 4,
                        "max_length": 2048, "seed": 1})["results"]
    ok = True
    for name, mine in zip(names, ours["tasks"]):
        for metric, key in (("acc,none", "accuracy"), ("acc_norm,none", "accuracy_norm")):
            a, b = theirs[name][metric], mine[key]["value"]
            same = abs(a - b) <= args.most_difference + 1e-9
            ok &= same
            print(f"{name[6:]:16} {key:14} lm-eval {a:.4f}  spear eval {b:.4f}{'' if same else '  DIFFERENT'}")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
