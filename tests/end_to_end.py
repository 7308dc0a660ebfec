"""The programs as a user runs them, on the real model: a tiny recovery, then everything that reads its result.

    SPEAR=build/release/bin/spear MODEL=models/SmolLM2-135M-Instruct.Q4_1.gguf python3 -m unittest tests/end_to_end.py

Needs numpy and tokenizers (python/requirements.txt). About five minutes on two cores.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SPEAR = Path(os.environ.get("SPEAR", ROOT / "build/release/bin/spear")).resolve()
MODEL = Path(os.environ.get("MODEL", ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf")).resolve()
TEXT = ROOT / "docs/checkpoint.md"  # a text that no calibration saw
CONTEXT, WINDOWS = 256, 4


def run(*arguments, code=0):
    """stdout of a command that must end with this exit code."""
    done = subprocess.run([str(a) for a in arguments], capture_output=True, text=True)
    if done.returncode != code:
        raise AssertionError(f"{arguments}: exit code {done.returncode}, not {code}\n{done.stderr[-3000:]}")
    return done.stdout


class EndToEnd(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = Path(tempfile.mkdtemp(prefix="spear-end-to-end-"))
        cls.addClassCleanup(shutil.rmtree, cls.folder)
        cls.out = cls.folder / "recovered"
        subprocess.run([str(a) for a in cls.recover_command(cls.out)], stdout=subprocess.DEVNULL, check=True)
        cls.manifest = json.loads((cls.out / "spear.json").read_text())
        cls.rows = {row["name"]: row for row in cls.manifest["results"]["rows"]}

    @classmethod
    def recover_command(cls, out):
        return (SPEAR, "recover", "--model", MODEL, "--preset", "quick", "--sample-sequences", 8, "--quantizer-sequences", 48, "--steps", 2,
                "--workspace", cls.folder / "work", "--text", TEXT, "--context", CONTEXT, "--windows", WINDOWS, "--out", out)

    def evaluate(self, *more, windows=WINDOWS):
        return json.loads(run(SPEAR, "eval", "--model", self.out, "--reference", MODEL, "--text", TEXT, "--context", CONTEXT,
                              "--windows", windows, "--json", *more))

    def test_recovers_much_of_what_rounding_took(self):
        self.assertLess(self.rows["recovered"]["kl"]["value"], 0.5 * self.rows["rtn"]["kl"]["value"])
        self.assertLess(self.rows["recovered"]["perplexity"]["value"], self.rows["rtn"]["perplexity"]["value"])

    def test_keeps_the_budget(self):
        self.assertGreater(self.manifest["bytes"]["compensators"], 0)
        self.assertLessEqual(self.manifest["bytes"]["fraction"], 0.01)

    def test_both_planes_measure_the_same(self):
        online, recovered = self.evaluate(), self.rows["recovered"]
        self.assertAlmostEqual(online["perplexity"]["value"] / recovered["perplexity"]["value"], 1, delta=1e-3)
        self.assertAlmostEqual(online["kl"]["value"] / recovered["kl"]["value"], 1, delta=1e-2)

    def test_compensators_matter(self):
        on, off = self.evaluate(), self.evaluate("--compensators", "off")
        self.assertLess(on["kl"]["value"], off["kl"]["value"])

    def test_python_reader_agrees(self):
        online = self.evaluate(windows=2)
        reader = json.loads(run(sys.executable, ROOT / "python/spear_reader.py", self.out, "--text", TEXT, "--context", CONTEXT,
                                "--windows", 2, "--json"))
        self.assertAlmostEqual(reader["perplexity"] / online["perplexity"]["value"], 1, delta=1e-3)

    def test_generates_the_same_text_twice(self):
        command = (SPEAR, "generate", "--model", self.out, "--chat", "--prompt", "What is the capital of France?",
                   "--temperature", 0, "--max-tokens", 24, "--quiet")
        text = run(*command)
        self.assertGreater(len(text.split()), 2)
        self.assertEqual(text, run(*command))

    def test_same_run_gives_the_same_bytes(self):
        again = self.folder / "again"
        run(*self.recover_command(again), "--resume")
        for name in ("model.safetensors", "compensators.safetensors"):
            self.assertEqual((again / name).read_bytes(), (self.out / name).read_bytes(), name)

    def test_nothing_is_overwritten(self):
        before = (self.out / "spear.json").read_bytes()
        run(*self.recover_command(self.out), code=2)
        self.assertEqual(before, (self.out / "spear.json").read_bytes())

    def test_a_rotated_stream_reads_the_same_everywhere(self):
        rotated = self.folder / "rotated"
        run(SPEAR, "quantize", "--model", MODEL, "--quantizer", "rtn", "--rotate", "stream", "--out", rotated, "--quiet")
        measure = ("--text", TEXT, "--context", CONTEXT, "--windows", 2, "--json")
        online = json.loads(run(SPEAR, "eval", "--model", rotated, *measure))["perplexity"]["value"]
        found = {"reader": json.loads(run(sys.executable, ROOT / "python/spear_reader.py", rotated, *measure))["perplexity"]}
        for form, out in (("gptq", self.folder / "rotated-gptq"), ("gguf", self.folder / "rotated.gguf")):
            run(SPEAR, "export", rotated, "--format", form, "--out", out, *(("--embeddings", "stored") if form == "gguf" else ()))
            found[form] = json.loads(run(SPEAR, "eval", "--model", out, *measure))["perplexity"]["value"]
        for name, value in found.items():
            self.assertAlmostEqual(value / online, 1, delta=1e-3, msg=name)
        self.assertNotEqual(json.loads((rotated / "config.json").read_text())["model_type"], "llama", "others must refuse it")
        self.assertEqual(json.loads((self.folder / "rotated-gptq/config.json").read_text())["model_type"], "llama")

    def test_report_and_inspect(self):
        page = (self.out / "report.html").read_text()
        self.assertIn("<svg", page)
        self.assertNotIn("<script src", page)
        json.loads(run(SPEAR, "inspect", "--model", self.out, "--json"))


if __name__ == "__main__":
    unittest.main()
