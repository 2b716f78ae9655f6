"""Run on the head by the files for ``ray up``, before Ray starts there: notes in the launcher's state that the head is in use.

Ray 2.60 notes that on the machine where ``ray up`` is given, and nowhere else. The head's own autoscaler then believes that there is no head yet,
and waits for it for ever instead of starting workers.
"""

from __future__ import annotations

from pathlib import Path

import yaml
from ray.autoscaler._private.local.node_provider import LocalNodeProvider

config = yaml.safe_load((Path.home() / "ray_bootstrap_config.yaml").read_text(encoding="utf-8"))
provider = LocalNodeProvider(config["provider"], config["cluster_name"])
if not provider.non_terminated_nodes({"ray-node-type": "head"}):
    tags = {"ray-node-type": "head", "ray-node-name": "head", "ray-node-status": "up-to-date", "ray-user-node-type": config["head_node_type"]}
    provider.create_node({}, tags, 1)
