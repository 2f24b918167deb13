"""Exports on the Hugging Face hub: fetched when named, pushed when asked, private unless said otherwise."""

import json
import os
import re

from reid_jax.errors import ConfigError, WeightsError

CARD = "card.json"
_ADDRESS = re.compile(r"hf://(?P<name>[\w.-]+/[\w.-]+)(@(?P<revision>.+))?")


def address(text):
    """(OWNER/NAME, revision or None) of hf://OWNER/NAME@REVISION; ConfigError for another text."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        raise ConfigError(f"{text} is no address of a model; it must be hf://OWNER/NAME or .../NAME@REVISION")
    return match["name"], match["revision"]


def fetch(text):
    """The local folder of a repository; ConfigError where it cannot be fetched."""
    name, revision = address(text)
    hub = _package(text)
    try:
        return hub.snapshot_download(name, revision=revision)
    except Exception as e:  # of the net, of the hub, of the disk
        raise ConfigError(f"{text} cannot be fetched ({str(e)[:200]}); check the name and revision") from e


def push(folder, text, public=False):
    """Uploads an export to hf://OWNER/NAME, made where it is absent; its address in the browser.

    public: whether a new repository may be seen by everybody. One that is there already stays as private as
    it is, and a public one is refused unless `public`. ConfigError for what is no whole export, or cannot be
    uploaded; the hub's package knows who you are (hf auth login).
    """
    name, revision = address(text)
    if revision:
        raise ConfigError(f"{text} names a revision; push to hf://{name}, the hub numbers revisions itself")
    check(folder)
    hub = _package(text)
    api = hub.HfApi()
    try:
        api.create_repo(name, private=not public, exist_ok=True)
        open_to_all = not api.repo_info(name).private
    except Exception as e:  # of the net, of the hub
        raise ConfigError(f"{text} cannot be made ({str(e)[:200]}); log in with: hf auth login") from e
    if open_to_all and not public:
        raise ConfigError(f"{text} is there and public; say --public, or push to another name")
    try:
        return str(api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export of reid_jax"))
    except Exception as e:
        raise ConfigError(f"{text} did not take the files ({str(e)[:200]}); push again") from e


def check(folder):
    """ConfigError for a folder that is no export; WeightsError for one with files that are not the card's."""
    from reid_jax.serve import embedder

    if not os.path.exists(os.path.join(folder, CARD)):
        raise ConfigError(f"{folder} has no {CARD}; write an export first: reid_jax export RUN --output DIR")
    embedder.read_card(folder)
    with open(os.path.join(folder, CARD), encoding="utf-8") as file:
        files = json.load(file).get("files", {})
    for name, digest in files.items():
        path = os.path.join(folder, os.path.basename(name))
        if not os.path.exists(path) or embedder.sha256(path) != digest:
            raise WeightsError(f"{path} is not the file that {CARD} tells of; export again")
    extra = sorted({*os.listdir(folder)} - {*files, CARD, "README.md"})
    if extra:
        raise ConfigError(f"{folder} has {extra[0]} too, which is no part of the export; take it away first")


def _package(text):
    try:
        import huggingface_hub
    except ImportError as e:
        raise ConfigError(f"{text} needs the package huggingface_hub: pip install 'reid_jax[hub]'") from e
    return huggingface_hub
