"""Write the golden keys and stage sources again: run it after raising a version, or when numbers
provably did not change.
"""

from __future__ import annotations

import json

from harness.engine.stages import STAGES
from tests.engine.test_plan import GOLDEN, plan_of, source_hash


def main() -> None:
    stages = {
        name: {"version": stage.version, "source": source_hash(name)}
        for name, stage in STAGES.items()
    }
    (GOLDEN / "stages.json").write_text(json.dumps(stages, indent=1, sort_keys=True) + "\n")
    keys = {node.stage: key for key, node in reversed(list(plan_of().nodes.items()))}
    (GOLDEN / "keys.json").write_text(json.dumps(keys, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
