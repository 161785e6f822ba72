"""A run folder or data set from a stranger is read, never run."""

import json
import pickle

import numpy as np
import pytest
import scipy.sparse as sp

import eval as evaluation
import train
from engine.conformance.made import write_dataset
from predict import Predictor

PAYLOAD = """
import pathlib
pathlib.Path({marker!r}).write_text("code of the run folder was executed")
from transformers import BertConfig, BertModel
class StrangeConfig(BertConfig):
    model_type = "strange"
class StrangeModel(BertModel):
    config_class = StrangeConfig
"""


class Bomb:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def put_strange_code(folder, config, marker):
    """Code into a folder's model, and a config that asks for it."""
    model = folder / "model"
    (model / "strange.py").write_text(PAYLOAD.format(marker=str(marker)))
    settings = json.loads((model / "config.json").read_text())
    settings |= {
        "model_type": "strange",
        "auto_map": {"AutoConfig": "strange.StrangeConfig", "AutoModel": "strange.StrangeModel"},
    }
    (model / "config.json").write_text(json.dumps(settings))
    text = config.read_text()
    assert "trust_remote_code: false" in text
    config.write_text(text.replace("trust_remote_code: false", "trust_remote_code: true"))


def test_code_in_a_run_folder_is_not_run_even_if_its_config_asks_for_it(
    make_config, tiny_encoder, tmp_path
):
    folder = train.fit(make_config(encoder={"name": tiny_encoder}, train={"epochs": 1}))
    marker = tmp_path / "executed"
    put_strange_code(folder, folder / "config.yaml", marker)
    with pytest.raises(ValueError, match=r"trust_remote_code|cannot be loaded"):
        evaluation.evaluate(folder)
    with pytest.raises(ValueError, match=r"trust_remote_code|cannot be loaded"):
        Predictor(folder)
    assert not marker.exists()


def test_code_of_a_member_is_not_run_either(make_config, tiny_encoder, tmp_path):
    fusion = {
        "name": "fusion",
        "method": {"name": "fusion", "members": {"dual": "stage:dual"}},
        "run": {"start_from": None},
    }
    folder = train.fit(
        make_config(
            encoder={"name": tiny_encoder},
            method={"name": "fusion"},
            stages=[{"name": "dual", "method": {"name": "dexml"}, "train": {"epochs": 1}}, fusion],
        )
    )
    marker, member = tmp_path / "executed", folder / "model" / "members" / "dual"
    put_strange_code(member, member / "config.yaml", marker)
    with pytest.raises(ValueError, match=r"trust_remote_code|cannot be loaded"):
        Predictor(folder)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["model/label_embeddings.npy", "val_rows.npy"])
def test_pickles_in_arrays_are_refused(make_config, tmp_path, name):
    folder = train.fit(make_config(train={"epochs": 1}))
    marker = tmp_path / "executed"
    np.save(folder / name, np.array([Bomb(marker)], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="expected .*, got values of type object"):
        evaluation.evaluate(folder)
    assert not marker.exists()


def test_pickled_weights_are_not_read(make_config, tiny_encoder, tmp_path):
    folder = train.fit(make_config(encoder={"name": tiny_encoder}, train={"epochs": 1}))
    marker = tmp_path / "executed"
    (folder / "model" / "model.safetensors").unlink()
    (folder / "model" / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(ValueError, match="cannot be loaded"):
        evaluation.evaluate(folder)
    assert not marker.exists()


def test_pickles_in_a_data_set_are_refused(make_config, tmp_path):
    folder = write_dataset(tmp_path / "sets" / "tiny")
    marker = tmp_path / "executed"
    matrix = sp.load_npz(folder / "Y.trn.npz")
    np.savez(
        folder / "Y.trn.npz",
        format=b"csr",
        shape=matrix.shape,
        indices=matrix.indices,
        indptr=matrix.indptr,
        data=np.array([Bomb(marker)] * matrix.nnz, dtype=object),
    )
    with pytest.raises(ValueError, match="expected real numbers, got values of type object"):
        train.fit(make_config(data={"root": str(tmp_path / "sets")}))
    assert not marker.exists()


def test_yaml_tags_do_not_make_objects(make_config, tmp_path):
    folder = train.fit(make_config(train={"epochs": 1}))
    marker = tmp_path / "executed"
    (folder / "config.yaml").write_text(
        f"data: !!python/object/apply:pathlib.Path.touch ['{marker}']\n"
    )
    with pytest.raises(ValueError, match="not valid YAML"):
        evaluation.evaluate(folder)
    assert not marker.exists()
