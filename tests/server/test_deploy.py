"""What lies in deploy/ fits the program: options, metrics, and where it can be asked, systemd."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from harness import ROOT, Server, clean_up  # noqa: E402

DEPLOY = ROOT / "deploy"


def tearDownModule():
    clean_up()


class Deploy(unittest.TestCase):
    def test_the_configuration_is_taken(self):
        with Server("--config", str(DEPLOY / "serve.toml")) as server:  # model, port and memory from the command line
            self.assertTrue(server.alive())
            config = next(json.loads(line) for line in server.log if '"config"' in line)
            wanted = tomllib.loads((DEPLOY / "serve.toml").read_text())["serve"]
            for name, value in wanted.items():
                if name not in ("model", "port", "kv-cache-memory"):
                    self.assertEqual(config[name], str(value), name)

    def test_every_metric_of_dashboard_and_alerts_exists(self):
        with Server() as server:
            server.complete(prompt="x")
            server.post("/v1/completions", {})  # refused: counted by reason
            known = set(re.findall(r"^# TYPE (\S+)", server.get("/metrics")[2].decode(), re.M))
        used = set()
        for file in (DEPLOY / "grafana/spear.json", DEPLOY / "alerts.yml"):
            used |= set(re.findall(r"\b(?:vllm|spear):[a-z0-9_]+", file.read_text()))
        self.assertGreater(len(used), 20)
        self.assertEqual({name for name in used if re.sub(r"_(bucket|sum|count)$", "", name) not in known and name not in known}, set())

    def test_the_dashboard_is_whole(self):
        board = json.loads((DEPLOY / "grafana/spear.json").read_text())
        ids = [panel["id"] for panel in board["panels"]]
        self.assertEqual(len(ids), len(set(ids)))
        taken = set()
        for panel in board["panels"]:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            self.assertFalse(cells & taken, panel["title"] + " overlaps another panel")
            self.assertLessEqual(at["x"] + at["w"], 24)
            taken |= cells
            for target in panel.get("targets", []):
                self.assertEqual(target["expr"].count("("), target["expr"].count(")"), target["expr"])

    @unittest.skipUnless(shutil.which("systemd-analyze"), "systemd is not here")
    def test_the_unit(self):
        unit = (DEPLOY / "spear.service").read_text()
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "spear.service"
            path.write_text(unit.replace("/opt/spear/bin/spear", "/bin/true"))
            done = subprocess.run(["systemd-analyze", "verify", path], capture_output=True, text=True)
            self.assertEqual((done.returncode, done.stderr), (0, ""))
            done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--threshold=20", path], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, "exposure above 2.0\n" + done.stdout[-300:])


if __name__ == "__main__":
    unittest.main()
