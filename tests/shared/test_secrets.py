"""Secrets stand in no URI, in no line that is printed and in no file that is kept."""

from pathlib import Path

import pytest
from conftest import Command, Ended, run_here
from retrain_tools import Project

from jobs import prepare as prepare_job
from jobs import retrain
from jobs.retraining.cycle_plan import run_id_of
from jobs.retraining.retrain_config import config_of
from jobs.session import run
from pipeline import manifest
from pipeline.shared.errors import InputError
from pipeline.shared.redact import redacted_command
from pipeline.shared.storage import Location, refuse_credentials
from training import neighbors, train

SECRET = "hunter2/+x"
WITH_CREDENTIALS = [
    f"s3://AKIAX:{SECRET}@bucket/data",
    f"s3a://{SECRET.replace('/', '')}@bucket/data",
    f"s3://bucket/data?access_key=AKIAX&secret_key={SECRET}",
    f"s3://bucket/data?region=us-east-1&session_token={SECRET}",
    f"s3://bucket/data?Secret%5FKey={SECRET}",
    f"abfs://box@account.dfs.core.windows.net/x?sig={SECRET}",
    f"gs://bucket/x?token={SECRET}",
    f"hdfs://user:{SECRET}@namenode:8020/x",
    f"https://host/x?X-Amz-Signature={SECRET}",
    f"ftp://me:{SECRET}@host/x",
    f"simplecache::s3://bucket/x?secret_key={SECRET}",
    f"sftp://:{SECRET}@host/x",
    f"s3://bucket/x?secret_key=a,{SECRET};{SECRET}",
]
WITHOUT = [
    "s3://bucket/a@b?region=eu-west-1&endpoint_override=127.0.0.1:9000&scheme=http",
    "abfs://box@account.dfs.core.windows.net/x",
    "hdfs://user@namenode:8020/a@b",
    "hdfs://namenode:8020/a@b",
    "http://[::1]:80/a@b",
    "file:///a/tokenizer=words",
    "data/me@home: x",
    "memory://m/x",
    "sqlite:////a/token=x/mlflow.db",
    "runs/secret=1/x?token=2",
    "secret=word",
]


def check_line(line: str) -> None:
    assert SECRET[:6] not in line
    assert [word for word in ("found credentials", "environment", "~/.aws", "role") if word not in line] == []
    assert "\n" not in line


@pytest.mark.parametrize("uri", WITH_CREDENTIALS)
def test_credentials_in_a_uri_are_refused_without_showing_them(uri: str) -> None:
    with pytest.raises(InputError) as caught:
        Location.of(uri)
    check_line(str(caught.value))


@pytest.mark.parametrize("uri", WITHOUT)
def test_other_uris_are_not(uri: str) -> None:
    refuse_credentials(uri)


@pytest.mark.parametrize("uri", [WITH_CREDENTIALS[0], WITH_CREDENTIALS[2]])
@pytest.mark.parametrize("flag", ["--data", "--output", "--init-from", "--shard-cache"])
def test_the_trainer_refuses_them_in_every_flag(flag: str, uri: str, call: Command) -> None:
    ended = call(train.main, flag, uri)
    ended.assert_refused()
    check_line(ended.stderr.strip())


@pytest.mark.parametrize("uri", [WITH_CREDENTIALS[0], WITH_CREDENTIALS[2]])
@pytest.mark.parametrize("flags", [["--input", "{}", "--output", "x"], ["--output", "{}", "--input", "x"]])
def test_prepare_refuses_them(flags: list[str], uri: str, call: Command) -> None:
    ended = call(lambda: run(prepare_job.main), *(flag.format(uri) for flag in flags))
    ended.assert_refused()
    check_line(ended.stderr.strip())


@pytest.mark.parametrize("flags", [["--data", "x", "{}"], ["--device", "{}"], ["--lr", "{}"]])
def test_what_no_flag_takes_is_named_without_them(flags: list[str], call: Command) -> None:
    ended = call(train.main, *(flag.format(WITH_CREDENTIALS[0]) for flag in flags))
    ended.assert_refused("***")
    assert SECRET[:6] not in ended.stderr


def test_other_commands_refuse_them(call: Command, capsys: pytest.CaptureFixture[str]) -> None:
    ended = call(neighbors.main, WITH_CREDENTIALS[0], "word")
    ended.assert_refused()
    check_line(ended.stderr.strip())
    with pytest.raises(SystemExit):
        manifest.main(["show", WITH_CREDENTIALS[2]])
    check_line(capsys.readouterr().err.strip())


@pytest.mark.parametrize(
    "section",
    [
        {"corpus": {"input": WITH_CREDENTIALS[2]}},
        {"corpus": {"input": ["a.txt", WITH_CREDENTIALS[0]]}},
        {"corpus": {"demo": True}, "registry": {"tracking_uri": f"http://me:{SECRET}@host:5000"}},
        {"corpus": {"demo": True}, "train": {"shard_cache": WITH_CREDENTIALS[0]}},
    ],
)
def test_the_yaml_of_retraining_is_refused_with_them(section: dict[str, object]) -> None:
    with pytest.raises(InputError) as caught:
        config_of({"name": "demo", "workspace": "x", **section})
    check_line(str(caught.value))


COMMANDS = [
    (["--conf", f"spark.hadoop.fs.s3a.secret.key={SECRET}"], ["--conf", "spark.hadoop.fs.s3a.secret.key=***"]),
    ([f"--conf=spark.hadoop.fs.s3a.access.key={SECRET}"], ["--conf=spark.hadoop.fs.s3a.access.key=***"]),
    (["--conf", f"spark.executorEnv.AWS_SECRET_ACCESS_KEY={SECRET} {SECRET}"], None),
    (["--conf", f"spark.hadoop.fs.azure.account.key.me.dfs.core.windows.net={SECRET}"], None),
    (["--conf", f"spark.driver.extraJavaOptions=-Da=b -Djavax.net.ssl.keyStorePassword={SECRET} -Dc=d"], None),
    (["--driver-java-options", f"-Dx.secret={SECRET}"], ["--driver-java-options", "-Dx.secret=***"]),
    (["--x-password", SECRET, "--y", "1"], ["--x-password", "***", "--y", "1"]),
    (["--x-password", f"--{SECRET}", "--y"], ["--x-password", "***", "--y"]),
    ([f"--x-password={SECRET}"], ["--x-password=***"]),
    ([f"--api-key={SECRET}=={SECRET}"], ["--api-key=***"]),
    ([f"AWS_SESSION_TOKEN={SECRET}", "env", "x"], ["AWS_SESSION_TOKEN=***", "env", "x"]),
    (["--driver-java-options", f"-Da=b -Dx.secret='{SECRET} {SECRET}'"], None),
    (["--packages", f"https://me:{SECRET}@host/x"], ["--packages", "https://***@host/x"]),
]


@pytest.mark.parametrize(("command", "shown"), COMMANDS)
def test_a_command_is_shown_without_secrets(command: list[str], shown: list[str] | None) -> None:
    found = redacted_command(command)
    assert (len(found), SECRET[:6] in str(found)) == (len(command), False)
    assert shown in (None, found)
    assert redacted_command(found) == found


def test_other_arguments_are_shown_as_they_are() -> None:
    command = ["spark-submit", "--master", "local[2]", "--conf", "spark.hadoop.fs.s3a.aws.credentials.provider=a.B"]
    command += ["--conf=spark.ui.enabled=true", "jobs/prepare.py", "--tokenizer", "words", "--input", "a=b", "--keep=3"]
    assert redacted_command(command) == command


@pytest.fixture
def project(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Project:
    return Project(tmp_path, capsys, monkeypatch)


def spark_submit(key: str, secret: str) -> dict[str, list[str]]:
    return {"spark_submit": ["--master", "local[2]", "--conf", f"{key}={secret}"]}


def test_a_cycle_runs_with_secrets_and_keeps_none(
    project: Project, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def retrained(step: str) -> Ended:
        return run_here(retrain.main, (step, "--config", "c.yaml"), monkeypatch, capsys)

    project.configure(**spark_submit("spark.hadoop.fs.s3a.secret.key", "hunter2"))
    assert retrained("plan").code == 0
    kept = {path.name: path.read_text() for path in project.workspace.rglob("*.json")}
    assert "spark.hadoop.fs.s3a.secret.key=***" in kept["plan.json"]
    assert [name for name, text in kept.items() if "hunter2" in text] == []
    project.configure(**spark_submit("spark.another.secret", "hunter2"))
    retrained("prepare").assert_refused("run `plan` again first")
    project.configure(**spark_submit("spark.hadoop.fs.s3a.secret.key", "renewed"))
    assert retrained("run").code == 0  # a new key is no reason for a new cycle
    assert "spark.hadoop.fs.s3a.secret.key=renewed" in project.tools.calls[0]
    assert len({path.parent for path in project.workspace.rglob("plan.json")}) == 1


def test_no_digest_of_a_secret_is_kept() -> None:
    configs = [
        config_of({"name": "a", "workspace": "w", "corpus": {"demo": True}, "torchrun": ["--x-token", secret]})
        for secret in ("one", "two")
    ]
    assert run_id_of([], configs[0]) == run_id_of([], configs[1])
