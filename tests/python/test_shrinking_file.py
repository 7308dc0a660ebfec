"""A model file that is cut while `spear eval` reads its weights from the mapping: an error that names it, no SIGBUS.

Needs numpy, build/release/bin/spear (or $SPEAR).
"""

import os
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from tiny_model import ROOT, write_tiny_model  # noqa: E402

SPEAR = Path(os.environ.get("SPEAR", ROOT / "build/release/bin/spear")).resolve()


@unittest.skipUnless(SPEAR.exists(), f"no program {SPEAR}: scripts/build")
class ShrinkingFileTest(unittest.TestCase):
    def test_evaluation_ends_with_an_error(self):
        with tempfile.TemporaryDirectory() as holder:
            model = write_tiny_model(Path(holder) / "model", hidden=256, intermediate=512, layers=4)
            weights, text = model / "model.safetensors", Path(holder) / "text"
            text.write_text("the model and the weight of a token " * 40_000)
            process = subprocess.Popen([str(SPEAR), "eval", "--model", str(model), "--text", str(text), "--context", "256", "--activations", "a32", "--threads", "2"],
                                       stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            maps, deadline = Path(f"/proc/{process.pid}/maps"), time.monotonic() + 60
            while time.monotonic() < deadline and process.poll() is None and str(weights) not in maps.read_text():
                time.sleep(0.01)
            time.sleep(0.7)  # the forward passes have begun
            self.assertIsNone(process.poll(), "the evaluation ended too early to cut its file")
            os.truncate(weights, 4096)
            out, err = process.communicate(timeout=120)
            self.assertEqual(process.returncode, 3, err.decode(errors="replace"))
            self.assertIn(f"error: {weights}: the file shrank", err.decode())
            self.assertIn("fix: ", err.decode())
            self.assertEqual(out, b"")  # no result of weights that were gone

    def test_a_cut_file_is_refused_when_it_is_opened(self):
        with tempfile.TemporaryDirectory() as holder:
            model = write_tiny_model(Path(holder) / "model")
            os.truncate(model / "model.safetensors", 20_000)
            done = subprocess.run([str(SPEAR), "generate", "--model", str(model), "--prompt", "x"], capture_output=True)
            self.assertEqual(done.returncode, 3, done.stderr)


if __name__ == "__main__":
    unittest.main()
