"""`spear recover` stopped anywhere by SIGINT or SIGKILL, with a full disk and with a folder it may not write to.

Whatever happened, --resume ends in the same files as a run that nobody stopped, and nothing half written can be read
as a checkpoint. A tiny random model; needs numpy, build/release/bin/spear (or $SPEAR) with its offline plane.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from tiny_model import ROOT, write_tiny_model  # noqa: E402

SPEAR = Path(os.environ.get("SPEAR", ROOT / "build/release/bin/spear")).resolve()
OFFLINE = SPEAR.parent.parent / "libexec" / "spear" / "spear-offline"
SEED = int(os.environ.get("SPEAR_TEST_SEED", "1"))
TRIALS = int(os.environ.get("SPEAR_TEST_TRIALS", "6"))
# What a manifest says about a run and not about its result.
OF_THE_RUN = {"created", "command", "stages", "peak_memory_bytes", "seconds_per_step", "machine"}


def without_times(value):
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in OF_THE_RUN}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def artifact(folder):
    """Name -> hash of every file; the manifest without what differs between runs. The report is made from that."""
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir() if path.name not in ("spear.json", "report.html")}
    return {**found, "spear.json": without_times(json.loads((folder / "spear.json").read_text()))}


@unittest.skipUnless(OFFLINE.exists(), f"no program {OFFLINE}: scripts/build")
class InterruptionTest(unittest.TestCase):
    maxDiff = 4000

    @classmethod
    def setUpClass(cls):
        holder = tempfile.TemporaryDirectory(prefix="spear-interruption-")
        cls.addClassCleanup(holder.cleanup)
        cls.root = Path(holder.name)
        cls.model = write_tiny_model(cls.root / "model")
        begin = time.monotonic()
        out = cls.root / "whole"
        done = cls.run_to_end(out)
        cls.seconds = time.monotonic() - begin
        assert done.returncode == 0, done.stderr.decode()
        cls.expected = artifact(out)
        assert {"model.safetensors", "compensators.safetensors", "config.json"} <= cls.expected.keys(), cls.expected

    @classmethod
    def command(cls, out, *more):
        return [str(a) for a in (SPEAR, "recover", "--model", cls.model, "--out", out, "--sample-sequences", 8, "--quantizer-sequences", 8, "--quantizer-length", 64,
                                 "--steps", 4, "--threads", 1, "--context", 64, "--windows", 2, "--text", ROOT / "docs" / "checkpoint.md", *more)]

    @classmethod
    def run_to_end(cls, out, *more):
        return subprocess.run(cls.command(out, *more), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

    def assert_only_whole_checkpoints(self, folder):
        for path in folder.iterdir():
            if path.name.endswith(".work") or not path.is_dir():
                continue
            readable = subprocess.run([str(SPEAR), "inspect", "--model", str(path), "--json"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0
            if readable:
                self.assertEqual(artifact(path), self.expected, path)

    def stop_and_resume(self, kind, rng):
        with tempfile.TemporaryDirectory(prefix="trial-", dir=self.root) as holder:
            folder, stops = Path(holder), []
            out = folder / "recovered"
            for attempt in range(3):  # stopped twice, at the most
                process = subprocess.Popen(self.command(out, *["--resume"] * (attempt > 0)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
                if attempt < 2:
                    stops.append(rng.uniform(0, self.seconds))
                    time.sleep(stops[-1])
                    process.send_signal(kind)
                stderr = process.communicate()[1].decode(errors="replace")
                self.assert_only_whole_checkpoints(folder)
                if process.returncode == 0:
                    break
                self.assertLess(attempt, 2, f"{kind.name} after {stops} s: {stderr}")
                # 130 is Spear's word for it; before its handler is in place the signal itself ends the process.
                self.assertIn(process.returncode, (130, -kind) if kind == signal.SIGINT else (-kind,), stderr)
                if out.exists():  # stopped between the result's last rename and the end of the process: it must be whole
                    break
            self.assertEqual(artifact(out), self.expected, f"{kind.name} after {stops} s")

    def test_interrupted_anywhere(self):
        rng = random.Random(SEED)
        for trial in range(TRIALS):
            with self.subTest(trial=trial):
                self.stop_and_resume(signal.SIGINT, rng)

    def test_killed_anywhere(self):
        rng = random.Random(SEED + 1)
        for trial in range(TRIALS):
            with self.subTest(trial=trial):
                self.stop_and_resume(signal.SIGKILL, rng)

    def test_damaged_intermediate_results_are_made_again(self):
        with tempfile.TemporaryDirectory(dir=self.root) as holder:
            folder = Path(holder)
            self.assertEqual(self.run_to_end(folder / "first", "--workspace", folder / "work").returncode, 0)
            for path in sorted((folder / "work").iterdir()):
                path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
            done = self.run_to_end(folder / "second", "--workspace", folder / "work", "--resume")
            self.assertEqual(done.returncode, 0, done.stderr)
            self.assertEqual(artifact(folder / "second"), self.expected)

    @unittest.skipUnless(os.geteuid() == 0, "mounting a small file system needs root")
    def test_full_disk(self):
        folder = self.root / "small"
        folder.mkdir()
        if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)], stderr=subprocess.DEVNULL).returncode != 0:
            self.skipTest("no file system can be mounted here")
        self.addCleanup(subprocess.run, ["umount", str(folder)], check=True)
        out, ballast = folder / "recovered", folder / "ballast"
        refused = 0
        # Less and less is left, so that the disk fills up in preflight, in stages and when the result is written.
        for left in (0, 10_000, 100_000, 500_000, 900_000, 1_300_000, 1_700_000, 1_950_000, 2_050_000, 2_200_000):
            ballast.write_bytes(b"")
            room = os.statvfs(folder)
            ballast.write_bytes(b"x" * max(0, room.f_bavail * room.f_frsize - left))
            done = self.run_to_end(out, "--resume")
            self.assert_only_whole_checkpoints(folder)
            if done.returncode == 0:
                break
            refused += 1
            self.assertEqual(done.returncode, 4, done.stderr)
            self.assertIn(b"space" if b"no space" in done.stderr else b"disk", done.stderr)
            self.assertFalse(out.exists())
        self.assertGreater(refused, 2)
        ballast.unlink()
        if not out.exists():
            done = self.run_to_end(out, "--resume")
            self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(artifact(out), self.expected)

    def test_output_that_cannot_be_written(self):
        plain = self.root / "a-file"
        plain.write_text("x")
        done = self.run_to_end(plain / "recovered")
        self.assertNotEqual(done.returncode, 0)
        self.assertNotIn(b"defect of SPEAR", done.stderr)
        if os.geteuid() == 0:
            self.skipTest("root may write to read-only folders; a file in place of a folder was refused")
        folder = self.root / "read-only"
        folder.mkdir(mode=0o500)
        done = self.run_to_end(folder / "recovered")
        self.assertIn(done.returncode, (1, 4), done.stderr)
        self.assertEqual(list(folder.iterdir()), [])


if __name__ == "__main__":
    unittest.main()
