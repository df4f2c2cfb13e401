"""The catalogue, the listing and the embedded weights themselves."""

import subprocess
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from stablerank.errors import ModelError
from stablerank.zoo.cache import folder_of, write_provenance
from stablerank.zoo.catalogue import ENTRIES, entry
from stablerank.zoo.listing import rows
from stablerank.zoo.resolve import resolve

EMBEDDED = [name for name, found in ENTRIES.items() if found.kind == "embedded"]


def test_names_resolve_with_and_without_the_scheme():
    assert set(ENTRIES) == {"arith-student", "arith-teacher", "arith-prm", "smollm2-135m-instruct"}
    assert all(entry(name) is entry(f"zoo:{name}") is ENTRIES[name] for name in ENTRIES)


def test_unknown_name_lists_the_valid_ones():
    with pytest.raises(ModelError) as caught:
        entry("zoo:arith-studnet")
    assert "'arith-studnet'" in str(caught.value)
    assert all(f"zoo:{name}" in str(caught.value) for name in ENTRIES)


def test_looking_at_the_zoo_loads_no_heavy_library():
    code = (
        "import sys; from stablerank.zoo import resolve, listing; listing.rows();"
        "print([m for m in ('torch', 'transformers', 'gguf', 'peft', 'trl') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_listing_tells_a_cached_model_from_one_to_download(tmp_path, monkeypatch):
    monkeypatch.setenv("STABLERANK_CACHE", str(tmp_path))
    smollm = ENTRIES["smollm2-135m-instruct"]
    (absent,) = [row for row in rows() if row["name"] == "zoo:smollm2-135m-instruct"]
    assert (absent["cached"], absent["bytes"], absent["kind"]) == (False, smollm.source.bytes, "fetched")

    folder = folder_of(smollm)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    write_provenance(folder, {})
    (present,) = [row for row in rows() if row["name"] == "zoo:smollm2-135m-instruct"]
    assert present["cached"]
    assert present["bytes"] == sum(file.stat().st_size for file in folder.iterdir()) < 1000
    assert present["folder"] == str(folder)


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_model_is_shipped_whole_and_runs(name):
    folder = resolve(f"zoo:{name}")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits_NTV = model(**tokenizer("3+4=?\n", return_tensors="pt")).logits
    assert logits_NTV.shape[-1] == len(tokenizer)
    assert logits_NTV.isfinite().all()


def test_embedded_models_share_one_vocabulary_and_stay_small():
    folders = [folder_of(ENTRIES[name]) for name in EMBEDDED]
    vocabularies = [AutoTokenizer.from_pretrained(folder).get_vocab() for folder in folders]
    assert all(vocabulary == vocabularies[0] for vocabulary in vocabularies)
    assert sum(file.stat().st_size for folder in folders for file in folder.iterdir()) < 12e6
