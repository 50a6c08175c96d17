"""`.nemo` archives are read as data; whatever is more than that is refused, and nothing of it runs."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import pytest
import torch
import yaml
from conftest import GOLDEN

from lightning_novograd.errors import ConfigError, DataError
from lightning_novograd.recipes.asr.weights.nemo import NemoArchive, load_nemo

TINY = GOLDEN / "models" / "quartznet_tiny.nemo"


@pytest.fixture(scope="module")
def contents():
    with tarfile.open(TINY) as archive:
        return {name: archive.extractfile(f"./{name}").read() for name in ("model_config.yaml", "model_weights.ckpt")}


def write(path, members, mode="w"):
    """A tar of (name, content) pairs; a TarInfo stands for itself."""
    with tarfile.open(path, mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
            else:
                name, content = member
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def with_config(contents, tmp_path, **changes):
    config = yaml.safe_load(contents["model_config.yaml"]) | changes
    members = contents | {"model_config.yaml": yaml.safe_dump(config).encode()}
    return write(tmp_path / "x.nemo", members.items())


def with_weights(contents, tmp_path, change):
    state = torch.load(io.BytesIO(contents["model_weights.ckpt"]), weights_only=True)
    buffer = io.BytesIO()
    torch.save(change(state), buffer)
    return write(tmp_path / "x.nemo", (contents | {"model_weights.ckpt": buffer.getvalue()}).items())


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
@pytest.mark.parametrize("prefix", ["", "./"])
def test_plain_and_compressed_archives_load_alike(contents, tmp_path, mode, prefix):
    path = write(tmp_path / "x.nemo", [(prefix + name, content) for name, content in contents.items()], mode)
    model, expected = load_nemo(path), load_nemo(TINY)
    assert not model.training
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), expected.state_dict().values(), strict=True)
    )


def test_the_archives_config_and_weights_are_there_as_plain_data():
    archive = NemoArchive.read(str(TINY))
    assert archive.config["optim"]["name"] == "novograd"
    assert archive.state_dict["decoder.decoder_layers.0.bias"].shape == (29,)
    assert set(archive.model_config()) == {
        "sample_rate",
        "labels",
        "preprocessor",
        "spec_augment",
        "encoder",
        "decoder",
    }


def test_labels_may_stand_in_the_decoder_only(contents, tmp_path):
    assert load_nemo(with_config(contents, tmp_path, labels=None)).alphabet.blank == 28


MEMBERS = {
    "path outside": (("../evil", b""), "unknown member '../evil'; allowed: model_config.yaml, model_weights.ckpt"),
    "absolute path": (("/etc/passwd", b""), "unknown member '/etc/passwd'"),
    "path within": (("folder/model_config.yaml", b""), "unknown member 'folder/model_config.yaml'"),
    "back and forth": (("./../model_config.yaml", b""), "unknown member './../model_config.yaml'"),
    "unknown file": (("tokenizer.model", b""), "unknown member 'tokenizer.model'"),
    "folder": (special("extra", tarfile.DIRTYPE), "unknown member 'extra'"),
    "symbolic link": (special("model_config.yaml", tarfile.SYMTYPE, "/etc/passwd"), "is a link or a special file"),
    "hard link": (special("model_weights.ckpt", tarfile.LNKTYPE, "/etc/passwd"), "is a link or a special file"),
    "device": (special("model_weights.ckpt", tarfile.CHRTYPE), "is a link or a special file"),
    "pipe": (special("model_weights.ckpt", tarfile.FIFOTYPE), "is a link or a special file"),
}


@pytest.mark.parametrize(("member", "problem"), MEMBERS.values(), ids=MEMBERS.keys())
def test_an_odd_member_is_refused(contents, tmp_path, member, problem):
    path = write(tmp_path / "x.nemo", [member, *contents.items()])
    with pytest.raises(DataError) as error:
        NemoArchive.read(path)
    assert problem in str(error.value)
    assert str(path) in str(error.value)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["x.nemo"]


def test_a_member_that_is_there_twice_is_refused(contents, tmp_path):
    path = write(tmp_path / "x.nemo", [*contents.items(), ("./model_config.yaml", b"labels: []")])
    with pytest.raises(DataError, match=r"'\./model_config\.yaml' is there twice"):
        NemoArchive.read(path)


@pytest.mark.parametrize("name", ["model_config.yaml", "model_weights.ckpt"])
def test_a_missing_member_is_named(contents, tmp_path, name):
    path = write(tmp_path / "x.nemo", [(n, c) for n, c in contents.items() if n != name])
    with pytest.raises(DataError, match=f"lacks {name}"):
        NemoArchive.read(path)


def test_an_oversized_config_is_not_read(contents, tmp_path):
    path = write(tmp_path / "x.nemo", [("model_config.yaml", b"#" * (1 << 20) + b"#")], "w:gz")
    with pytest.raises(DataError, match=r"'model_config\.yaml' has 1048577 bytes; at most 1048576 are read"):
        NemoArchive.read(path)


def test_a_config_of_the_largest_size_is_read_and_weights_beyond_theirs_are_not(contents, tmp_path):
    config = contents["model_config.yaml"]
    members = contents | {"model_config.yaml": config + b"#" * ((1 << 20) - len(config))}
    assert load_nemo(write(tmp_path / "x.nemo", members.items()))
    huge = tarfile.TarInfo("model_weights.ckpt")
    huge.size = (8 << 30) + 1
    (tmp_path / "x.nemo").write_bytes(huge.tobuf())
    with pytest.raises(DataError, match=r"'model_weights\.ckpt' has 8589934593 bytes; at most 8589934592 are read"):
        NemoArchive.read(tmp_path / "x.nemo")


@pytest.mark.parametrize("name", [".", "./"])
def test_the_folder_that_all_members_are_in_may_be_one(contents, tmp_path, name):
    path = write(tmp_path / "x.nemo", [special(name, tarfile.DIRTYPE), *contents.items()])
    assert NemoArchive.read(path).path == path


@pytest.mark.parametrize(
    ("section", "name"),
    [
        ("preprocessor", "AudioToMelSpectrogramPreprocessor"),
        ("spec_augment", "SpectrogramAugmentation"),
        ("encoder", "ConvASREncoder"),
        ("decoder", "ConvASRDecoder"),
    ],
)
def test_classes_are_compared_by_name(section, name):
    def read(target):
        given = {"a": 1} if target is None else {"a": 1, "_target_": target}
        archive = NemoArchive(Path("f/x.nemo"), {section: given, "trainer": {}}, {})
        config = archive.model_config()
        assert ("_target_" in given) == (target is not None), "the archive's own is left alone"
        return config

    for target in (name, f"any.module.{name}", None):
        assert read(target) == {section: {"a": 1}}
    with pytest.raises(ConfigError) as error:
        read("a.Other")
    assert error.value.path == f"x.nemo:{section}._target_"
    assert error.value.problem == f"is 'a.Other'; only {name} can be read"


@pytest.mark.parametrize("count", [5, 6, 9])
def test_of_many_problems_five_are_named(contents, tmp_path, count):
    path = with_weights(contents, tmp_path, lambda s: s | {f"extra{i}": torch.ones(1) for i in range(count)})
    with pytest.raises(DataError) as error:
        load_nemo(path)
    first = "; ".join(f"has an unknown extra{i}" for i in range(5))
    more = f"; and {count - 5} more" if count > 5 else ""
    assert str(error.value) == f"{path}: model_weights.ckpt does not fit model_config.yaml: it {first}{more}"


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"", "is not a .nemo archive"), (b"not a tar" * 100, "is not a .nemo archive"), (None, "No such file")],
    ids=["empty", "other", "missing"],
)
def test_a_file_that_is_no_archive_is_named(tmp_path, content, problem):
    path = tmp_path / "x.nemo"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError) as error:
        NemoArchive.read(path)
    assert f"{path}: " in str(error.value)
    assert problem in str(error.value)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_archive_is_an_error(contents, tmp_path, mode, share):
    path = write(tmp_path / "x.nemo", contents.items(), mode)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(DataError, match=r"x\.nemo"):
        load_nemo(path)


class Payload:
    """Runs a command when a pickle of it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


def test_code_in_the_weights_does_not_run(contents, tmp_path):
    target = tmp_path / "executed"
    path = with_weights(contents, tmp_path, lambda state: state | {"x": Payload(target)})
    with pytest.raises(DataError, match=r"model_weights\.ckpt is not plain weights: .* names posix\.mkdir"):
        NemoArchive.read(path)
    assert not target.exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol 4")
def test_code_in_a_bare_pickle_does_not_run(contents, tmp_path):
    target = tmp_path / "executed"
    members = contents | {"model_weights.ckpt": pickle.dumps(Payload(target))}
    with pytest.raises(DataError, match=r"model_weights\.ckpt is not plain weights"):
        NemoArchive.read(write(tmp_path / "x.nemo", members.items()))
    assert not target.exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("labels: !!python/object/apply:os.mkdir [{target}]", "is not plain YAML"),
        ("labels: [", "is not plain YAML"),
        ("- 1", "is not a mapping"),
        ("\x00", "is not plain YAML"),
    ],
)
def test_a_config_that_is_more_or_less_than_yaml_is_refused(contents, tmp_path, text, problem):
    target = tmp_path / "executed"
    members = contents | {"model_config.yaml": text.replace("{target}", str(target)).encode()}
    with pytest.raises(DataError, match=f"model_config.yaml {problem}"):
        NemoArchive.read(write(tmp_path / "x.nemo", members.items()))
    assert not target.exists()


def test_another_models_archive_is_refused_by_its_class_name(contents, tmp_path):
    path = with_config(contents, tmp_path, encoder={"_target_": "nemo.collections.asr.modules.ConformerEncoder"})
    with pytest.raises(ConfigError, match=r"x\.nemo:encoder\._target_: is '.*ConformerEncoder'; only ConvASREncoder"):
        load_nemo(path)


def test_a_misspelt_key_of_the_archive_is_named(contents, tmp_path):
    block = {"filters": 8, "kernal": 3, "residual": False}
    path = with_config(contents, tmp_path, encoder={"jasper": [block]}, decoder={})
    with pytest.raises(ConfigError, match=r"^x\.nemo:encoder\.jasper\[0\]\.kernal: unknown key; did you mean 'kernel'"):
        load_nemo(path)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: {k: v for k, v in s.items() if "bias" not in k}, "lacks encoder.encoder.0.mconv.2.bias"),
        (lambda s: s | {"extra": torch.ones(1)}, "has an unknown extra"),
        (lambda s: s | {"preprocessor.featurizer.window": torch.ones(3)}, "of shape (3,) instead of (320,)"),
    ],
)
def test_weights_that_do_not_fit_are_named(contents, tmp_path, change, problem):
    with pytest.raises(DataError) as error:
        load_nemo(with_weights(contents, tmp_path, change))
    assert problem in str(error.value)


@pytest.mark.parametrize("change", [list, lambda s: s | {"epoch": 3}, lambda s: {0: torch.ones(1)}])
def test_weights_are_names_and_tensors(contents, tmp_path, change):
    with pytest.raises(DataError, match="is not a mapping of names to tensors"):
        load_nemo(with_weights(contents, tmp_path, change))


def test_a_model_is_no_larger_than_its_weights(contents, tmp_path):
    encoder = yaml.safe_load(contents["model_config.yaml"])["encoder"]
    encoder["jasper"][0] |= {"filters": 65536, "kernel": 65535, "separable": False}
    with pytest.raises(DataError, match=r"does not fit model_config\.yaml: it (lacks|has) "):
        load_nemo(with_config(contents, tmp_path, encoder=encoder))
    encoder["jasper"][0] |= {"filters": 8, "kernel": 3, "repeat": 1000}
    with pytest.raises(
        DataError, match=r"does not fit model_config\.yaml: it has 10\d\d convolutions, but \d+ weights"
    ):
        load_nemo(with_config(contents, tmp_path, encoder=encoder))


def test_weights_that_are_not_finite(contents, tmp_path):
    def change(state):
        return {name: value * float("nan") if name.endswith("bias") else value for name, value in state.items()}

    with pytest.raises(DataError, match=r"x\.nemo has weights that are not finite \(NaN or infinity\): .*bias and \d"):
        load_nemo(with_weights(contents, tmp_path, change))
