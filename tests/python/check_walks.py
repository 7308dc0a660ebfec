#!/usr/bin/env python3
"""Random outputs of constrained decoding against python's jsonschema, for development.

    SPEAR_WALKS=walks.jsonl build/dev/bin/constrain_tests --gtest_filter=SchemaTest.RandomWalksAreValid
    tests/python/check_walks.py walks.jsonl          needs: pip install jsonschema
"""

import json
import sys

import jsonschema


def main() -> int:
    bad = count = 0
    for line in open(sys.argv[1], encoding="utf-8"):
        walk = json.loads(line)
        count += 1
        try:
            jsonschema.validate(json.loads(walk["text"]), walk["schema"], cls=jsonschema.Draft202012Validator)
        except (jsonschema.ValidationError, json.JSONDecodeError) as error:
            bad += 1
            print(f"{walk['schema']}\n{walk['text']}\n{error}\n", file=sys.stderr)
    print(f"{count} documents, {bad} of them invalid")
    return 1 if bad or not count else 0


if __name__ == "__main__":
    sys.exit(main())
