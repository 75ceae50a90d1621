"""``models`` of tollhouse.yaml reaches the model process, and a gateway without models works."""

import subprocess
from pathlib import Path

import httpx
import pytest

from local_models.catalogue import ensure, load_catalogue
from local_models.origins import read_origin
from tests.gateway.running import ProviderThread, running_gateway, wait_for
from tests.local_models.file_servers import FileServer, serving

MODELS = ("smollm2-135m-instruct", "all-minilm-l6-v2")


def _ask(base_url: str, key: str, model: str) -> httpx.Response:
    body = {"model": model, "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}
    return httpx.post(
        f"{base_url}/chat/completions",
        json=body,
        headers={"authorization": f"Bearer {key}"},
        trust_env=False,
        timeout=30,
    )


@pytest.mark.slow
def test_the_model_process_fetches_from_the_mirror_of_the_settings(
    tmp_path: Path, provider: ProviderThread
) -> None:
    """Its password is in no command line, where everybody on the machine could read it."""
    mirror = FileServer(None)
    for name in MODELS:
        for file in load_catalogue()[name].files:
            mirror.files[f"/m/{name}/{file}"] = (ensure(name) / file).read_bytes()
    with serving(mirror):
        address = mirror.root.replace("//", "//reader:s3cret@")
        with running_gateway(
            tmp_path,
            provider.base_url,
            local=True,
            environment={"MIRROR": f"{address}/m"},
            settings="models_dir: models\nmodels: {mirror: '${env:MIRROR}', sources: [mirror]}\n",
        ) as gateway:
            command = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True)
            assert "local_models.server" in command.stdout
            assert "s3cret" not in command.stdout
            assert _ask(gateway.base_url, gateway.key("acme"), "small").status_code == 200
            assert "s3cret" not in gateway.describe()
    origin = read_origin(tmp_path / "models" / MODELS[0])
    assert origin is not None
    assert origin.source == "mirror 127.0.0.1/m"
    assert "/m/smollm2-135m-instruct/model.gguf" in mirror.paths


@pytest.mark.slow
def test_without_any_model_the_gateway_answers_and_says_why(
    tmp_path: Path, provider: ProviderThread
) -> None:
    """One sentence in the log; the large model is asked as ever."""
    with running_gateway(tmp_path, provider.base_url) as gateway:
        gateway.stop()
        text = gateway.config.read_text().replace("enabled: off", "enabled: on")
        gateway.config.write_text(f"{text}models_dir: models\nmodels: {{sources: []}}\n")
        gateway.start()
        said = "smollm2-135m-instruct cannot be fetched: parts is left out by models.sources"
        wait_for(lambda: said in gateway.log.read_text(), 20, gateway.describe)
        answer = _ask(gateway.base_url, gateway.key("acme"), "large")
        assert answer.status_code == 200
        assert answer.headers["x-tollhouse-model"] == "large"
