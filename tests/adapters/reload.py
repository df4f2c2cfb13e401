"""Reload saved adapters in a process of its own: `python reload.py CASES.json OUT.safetensors [--ours]`.

Each case names a base folder, an adapter folder (or none: the base folder is the model), a dtype and token ids. Without
``--ours`` nothing of stablerank is imported. What cannot be loaded leaves its reason in OUT.json.
"""

import json
import sys
import warnings
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

warnings.filterwarnings("ignore")
cases, out = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2]
if "--ours" in sys.argv:
    import stablerank.peft  # noqa: F401
logits, refusals = {}, {}
for name, case in cases.items():
    try:
        model = AutoModelForCausalLM.from_pretrained(case["base"], dtype=getattr(torch, case["dtype"]))
        if case["adapter"]:
            model = PeftModel.from_pretrained(model, case["adapter"])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=case["autocast"]):
            logits[name] = model.eval()(torch.tensor(case["ids"])).logits.float().contiguous()
    except Exception as error:
        refusals[name] = f"{type(error).__name__}: {error}"
assert "--ours" in sys.argv or not any(name.startswith("stablerank") for name in sys.modules)
save_file(logits, out)
Path(f"{out}.json").write_text(json.dumps(refusals))
