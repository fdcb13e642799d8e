"""Secrets that are masked by their names, and what only looks like one."""

from __future__ import annotations

import time

import pytest

from trainwire.ingest.provenance.masking import masked_arguments, masked_text, masked_variables

SECRET = "hunter-2+"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--api-key", SECRET],
        ["--api_key", SECRET, "--lr", "0.1"],
        ["-apiKey", SECRET],
        [f"--password={SECRET} with spaces"],
        ["--token", f"-{SECRET}"],
        ["env", f"WANDB_API_KEY={SECRET}", "python"],
        [f"+db.password={SECRET}"],
        [f"trainer.logger.api_key={SECRET}"],
        [f"https://user:{SECRET}@host/path"],
        [f"https://user:p@{SECRET}@host/path"],
        [f"https://{SECRET}@host/path"],
        [f"postgresql://host/db?password={SECRET}&sslmode=require"],
        [f'{{"password": "{SECRET}", "lr": 3}}'],
        [f"sh -c 'train --password {SECRET} --lr 1'"],
        ["-H", f"Authorization: Bearer {SECRET}{SECRET}"],
        [f"Bearer {SECRET}{SECRET}".replace("+", "")],
        ["AWS_SECRET_ACCESS_KEY=" + SECRET],
        ["--hf-token", SECRET],
        [f"--auth={SECRET}"],
    ],
)
def test_secrets_are_masked(arguments: list[str]) -> None:
    """A value that belongs to a secret's name is not shown, however it is written."""
    masked = masked_arguments(arguments)
    assert SECRET.rstrip("+") not in " ".join(masked)
    assert "***" in " ".join(masked)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--lr", "0.1", "--tokenizer", "bert", "--max-tokens", "100"],
        ["--pad-token", "<pad>", "--eos_token=</s>", "--sort-key", "name"],
        ["--use-auth", "--lr=3"],
        ["train.py", "git@github.com:me/repo.git", "ssh://git@host/repo", "http://host:80/path@x"],
        ["--keys", "a", "--monkey", "b", "--author", "me"],
        ["tokens = tokenizer(text)", "if token == other: pass"],
    ],
)
def test_what_is_no_secret_stays(arguments: list[str]) -> None:
    """Hyperparameters, addresses and code are shown as they are."""
    assert masked_arguments(arguments) == arguments


def test_variables_and_diffs_are_masked() -> None:
    """Variables are masked by their names, lines of a diff by the names in them."""
    assert masked_variables(
        {"WANDB_API_KEY": SECRET, "OMP_NUM_THREADS": "8", "HF_ENDPOINT": f"http://u:{SECRET}@h"}
    ) == {
        "WANDB_API_KEY": "***",
        "OMP_NUM_THREADS": "8",
        "HF_ENDPOINT": "http://u:***@h",
    }
    diff = f"+API_KEY={SECRET}\n+password = '{SECRET}'\n-  secret: {SECRET}\n+lr = 0.1\n+token = tokenizer(text)\n"
    masked = "+API_KEY=***\n+password = '***'\n-  secret: ***\n+lr = 0.1\n+token = tokenizer(text)\n"
    assert masked_text(diff) == masked


@pytest.mark.parametrize(
    "text", ["a" * 200_000, "a.-" * 70_000, "a=" * 100_000, "http://" * 30_000, "eyJ" * 70_000]
)
def test_long_lines_take_no_time(text: str) -> None:
    """A diff of minified code is masked in about linear time."""
    began = time.process_time()
    masked_text(text)
    assert time.process_time() - began < 2
