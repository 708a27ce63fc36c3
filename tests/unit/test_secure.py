"""What ``mdi-exit secure`` makes, gives and takes; signatures of models; reasons of TLS in words."""

from __future__ import annotations

import hashlib
import re
import shutil
import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

import broker
from broker import access
from edge_agent.config import AgentSettings, resolve_agent
from mdi_exit import discovery
from mdi_exit.client import Client
from mdi_exit.errors import ArtifactError, MdiExitError, TransportError, UsageError
from mdi_exit.events import ModelRefused
from mdi_exit.model.artifact import DEFAULT_MODEL, Artifact
from mdi_exit.model.compose import Composer
from mdi_exit.secure.authority import Authority, expires, serial_of
from mdi_exit.secure.command import main
from mdi_exit.secure.sign import sign
from mdi_exit.secure.store import Record, Store
from mdi_exit.segments import needed_segments, possible_segments
from mdi_exit.signing import (
    SIGNATURE_FILE,
    Verifier,
    manifest_statement,
    new_key,
    private_key,
    read_signature,
    segment_statement,
)
from mdi_exit.span import LayerSpan
from mdi_exit.transport.tls import is_denial, plain_reason, tls_context
from mdi_exit.worker_config import WorkerConfig
from mdi_exit.worker_state import WorkerState

NOW = datetime.now(UTC)
RECORD = Record(
    deployment="yard", hosts=("broker.local", "192.168.1.10", "::1"), port=8883, password_port=8884, days=30,
    install="/etc/mdi-exit", broker_install="/etc/mosquitto/mdi-exit",
)  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.make(tmp_path / "made", RECORD, {"nano": "agent", "hub": "source", "cam": "client"}, NOW)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def certificate(store: Store, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((store.folder / name).read_bytes())


def revoked(store: Store) -> set[int]:
    found = x509.load_pem_x509_crl((store.folder / "broker" / "revoked.pem").read_bytes())
    assert found.is_signature_valid(store.authority.key.public_key())
    assert found.next_update_utc == store.authority.certificate.not_valid_after_utc
    return {entry.serial_number for entry in found}


# --- the access list


def test_the_list_that_compose_uses_is_the_one_that_the_table_gives() -> None:
    file = Path(broker.__file__).parent / "acl"
    assert file.read_text() == access.by_role(), "python -m broker.access > broker/acl"


def test_an_agents_rules_name_it_wherever_it_speaks_for_itself() -> None:
    rules = {(rule.access, rule.topic) for rule in access.rules_of("agent", "nano", "yard")}
    written = {topic for kind, topic in rules if kind != "read"}
    assert written == {
        "mdi/yard/layers/+/+", "mdi/yard/links/+/nano", "mdi/yard/agents/nano", "mdi/yard/telemetry/nano",
        "mdi/yard/results/nano", "mdi/yard/training/+/nano",
    }  # fmt: skip
    assert ("read", "mdi/yard/layers/+/nano") in rules
    assert not [topic for _, topic in rules if topic.endswith("layers/+/+") and ("read", topic) in rules]


def test_a_role_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError, match=r"role: expected one of agent, source, .*got 'root'"):
        access.rules_of("root", "me", "default")


def test_rules_of_ones_own_stay(store: Store) -> None:
    (store.folder / "broker" / "access.extra").write_text("user cam\ntopic write cams/#\n")
    store.add("pi", "agent", NOW)
    store.renew("nano", NOW)
    text = (store.folder / "broker" / "acl").read_text()
    assert text.endswith("\nuser cam\ntopic write cams/#\n")
    assert text.count("cams/#") == 1


# --- the folder


def test_certificates_are_for_what_they_are_for(store: Store) -> None:
    of_broker, of_node = certificate(store, "broker/broker.crt"), certificate(store, "bundles/nano/node.crt")
    names = of_broker.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["broker.local"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["192.168.1.10", "::1"]
    usage = x509.ExtendedKeyUsage
    assert list(of_broker.extensions.get_extension_for_class(usage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert list(of_node.extensions.get_extension_for_class(usage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert of_node.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "nano"
    for one in (of_broker, of_node):
        one.verify_directly_issued_by(store.authority.certificate)
        assert not one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert timedelta(days=29) < expires(store.read("bundles/nano/node.crt")) - NOW <= timedelta(days=30)


def test_nobody_else_may_read_it_and_nothing_is_overwritten(store: Store) -> None:
    assert {path.stat().st_mode & 0o777 for path in store.folder.rglob("*") if path.is_file()} == {0o600}
    assert {path.stat().st_mode & 0o777 for path in store.folder.rglob("*") if path.is_dir()} == {0o700}
    before = contents(store.folder)
    with pytest.raises(UsageError, match="nothing is overwritten"):
        Store.make(store.folder, RECORD, {"nano": "agent"}, NOW)
    assert contents(store.folder) == before


def test_the_record_holds_no_secret(store: Store) -> None:
    record = (store.folder / "secure.json").read_text()
    for path in [*store.folder.rglob("*.key"), *store.folder.rglob("password")]:
        assert path.read_text().splitlines()[-1] not in record
    assert Store.open(store.folder).record == store.record


def test_one_more_gets_files_of_its_own_and_the_others_keep_theirs(store: Store) -> None:
    before = contents(store.folder)
    store.add("pi", "agent", NOW)
    after = contents(store.folder)
    changed = {name for name in before if before[name] != after[name]}
    assert changed <= {"secure.json", "broker/acl", "broker/passwords", "broker/revoked.pem"}
    kept = set(before["broker/passwords"].splitlines())
    assert kept < set(after["broker/passwords"].splitlines())
    with pytest.raises(UsageError, match="NAME: expected one that is not taken"):
        store.add("pi", "agent", NOW)


def test_a_renewed_certificate_has_another_key_and_both_are_remembered(store: Store) -> None:
    before = {name: store.read(f"bundles/nano/{name}") for name in ("node.crt", "node.key", "password")}
    store.renew("nano", NOW)
    assert store.read("bundles/nano/node.key") != before["node.key"]
    assert store.read("bundles/nano/password") == before["password"]
    serials = store.record.users["nano"].serials
    assert serials == (serial_of(before["node.crt"]), serial_of(store.read("bundles/nano/node.crt")))
    assert revoked(store) == set()
    broker_before = store.read("broker/broker.crt")
    store.renew_broker(NOW)
    assert store.read("broker/broker.crt") != broker_before
    assert store.unsound() == []


def test_who_is_shut_out_loses_everything_and_its_name_is_free(store: Store) -> None:
    store.renew("nano", NOW)
    serials = set(store.record.users["nano"].serials)
    store.revoke("nano", NOW)
    assert revoked(store) == serials
    assert not store.bundle("nano").exists()
    assert "nano" not in (store.folder / "broker" / "acl").read_text()
    assert "nano" not in (store.folder / "broker" / "passwords").read_text()
    with pytest.raises(UsageError, match="NAME: expected one of cam, hub, got nano"):
        store.revoke("nano", NOW)
    store.add("nano", "agent", NOW)
    assert not set(store.record.users["nano"].serials) & revoked(store)


def test_a_certificate_lasts_no_longer_than_its_authority() -> None:
    authority = Authority.new("old", NOW - timedelta(days=3640))
    assert expires(authority.for_user("nano", NOW, 100).certificate) == authority.certificate.not_valid_after_utc
    with pytest.raises(UsageError, match="authority: expected the key of its certificate, got another"):
        Authority.load(authority.certificate.public_bytes(Encoding.PEM), authority.for_user("a", NOW, 1).key)
    with pytest.raises(UsageError, match="authority: expected a certificate and its key in PEM"):
        Authority.load(b"x", b"y")


# --- the command


def secure(*argv: object) -> int:
    return main([str(word) for word in argv])


def test_init_add_renew_revoke_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "made"
    where = ("--host", "broker.local,10.0.0.7", "--deployment", "yard", "--days", 20)
    assert secure("init", made, "--nodes", "nano,pi", "--source", "hub", "--also", "eye:observer", *where) == 0
    assert secure("add", made, "cam", "--role", "client") == 0
    assert secure("renew", made) == 0
    assert secure("renew", made, "broker", "pi") == 0
    assert secure("revoke", made, "nano") == 0
    said = capsys.readouterr().out
    assert secure("check", made) == 0
    table = capsys.readouterr()
    assert re.search(r"pi .*agent .*bundles/pi/node.crt .* 19 ", table.out)
    assert "nano" not in table.out
    assert table.err == ""
    record = Store.open(made).record
    assert record.hosts == ("broker.local", "10.0.0.7", "localhost", "127.0.0.1")
    assert {name: user.role for name, user in record.users.items()} == {
        "pi": "agent", "hub": "source", "eye": "observer", "cam": "client"
    }  # fmt: skip
    assert len(record.users["pi"].serials) == 3
    for path in [*made.rglob("*.key"), *made.rglob("password")]:
        assert path.read_text().splitlines()[-1] not in said
    toml = (made / "bundles" / "hub" / "mdi-exit.toml").read_text()
    assert '[source]\nname = "hub"\nbroker = "mqtts://broker.local:8883"\n' in toml
    assert 'require_signed_model = "/etc/mdi-exit/model.pub"' in toml


def test_check_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = tmp_path / "made"
    secure("init", made, "--nodes", "nano,pi,old", "--host", "h")
    store = Store.open(made)
    stranger = Authority.new("another", NOW).for_user("nano", NOW, 5)
    (made / "bundles" / "nano" / "node.crt").write_bytes(stranger.certificate)
    (made / "bundles" / "pi" / "node.key").write_bytes(stranger.key)
    (made / "bundles" / "pi" / "password").chmod(0o644)
    old = store.authority.for_user("old", NOW - timedelta(days=9), 5)
    (made / "bundles" / "old" / "node.crt").write_bytes(old.certificate)
    (made / "bundles" / "old" / "node.key").write_bytes(old.key)
    acl = made / "broker" / "acl"
    acl.write_text(acl.read_text().replace("user source", "user ghost"))
    capsys.readouterr()
    assert secure("check", made) == 1
    assert capsys.readouterr().err.splitlines() == [
        "bundles/old/node.crt: expired",
        f"{made}/bundles/pi/password: others may read it (chmod go= it)",
        "nano: bundles/nano/node.crt is of another authority",
        "pi: bundles/pi/node.key is of another certificate",
        "source: no rules in broker/acl",
        "ghost: rules in broker/acl, but unknown",
    ]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (("open",), "WHAT: expected one of init, add"),
        (("init",), "secure init: expected one folder DIR, got none"),
        (("init", "DIR", "--host", "a b"), "--host: expected names or addresses"),
        (("init", "DIR", "--nodes", "a,a"), "--nodes: expected each name once"),
        (("init", "DIR", "--nodes", "source"), "--nodes, --source, --also: expected each name once, got source"),
        (("init", "DIR", "--also", "me:king"), "--also: expected NAME:ROLE with a role of agent, source"),
        (("init", "DIR", "--install", "here"), "--install: expected an absolute path without spaces"),
        (("init", "DIR", "--password-port", "8883"), "--password-port: expected another port than --port"),
        (("add", "DIR"), "mdi-exit secure: expected a folder and a name: DIR NAME, got DIR"),
        (("add", "DIR", "nano"), "DIR: expected a folder that 'mdi-exit secure init' has made"),
        (("check",), "DIR: expected a folder that 'mdi-exit secure init' has made, got none"),
        (("check", "DIR", "nano"), "DIR: expected one folder, got DIR nano"),
        (("renew",), "DIR: expected a folder that 'mdi-exit secure init' has made, got none"),
        (("sign", DEFAULT_MODEL), "--key: expected the signing key (FILE), got none"),
        (("sign", DEFAULT_MODEL, "--key", "nowhere"), "--key: expected a private key (PEM), got nowhere: No such file"),
    ],
)
def test_mistakes_are_one_plain_line(
    argv: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(MdiExitError, match="^" + re.escape(said)) as told:
        secure(*argv)
    assert "\n" not in str(told.value)
    assert told.value.exit_status == 2
    assert list(tmp_path.iterdir()) == []


def test_help_and_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert (secure("--help"), secure()) == (0, 2)
    assert "  sign    sign a model" in capsys.readouterr().out


# --- models


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The shipped model with a signature, the private key, the public one."""
    folder = tmp_path_factory.mktemp("signed")
    private, public = folder / "key", folder / "pub"
    for path, content in zip((private, public), new_key(), strict=True):
        path.write_bytes(content)
    sign(Artifact.open(DEFAULT_MODEL), private_key(private), folder / "model")
    return folder / "model", private, public


def test_every_segment_that_spans_can_need_is_signed(signed: tuple[Path, Path, Path]) -> None:
    model, _, public = signed
    artifact, verifier = Artifact.open(model), Verifier.load(public)
    plan, digest = artifact.manifest.plan, artifact.manifest.digest
    signature = read_signature(model, digest)
    assert signature is not None
    verifier.check_artifact(model, digest)
    count = plan.layer_count
    spans = [LayerSpan(first, stop) for first in range(count) for stop in range(first + 1, count + 1)]
    needed = {key for span in spans for key in needed_segments(plan, span, spans)}
    assert needed == possible_segments(plan)
    assert {key.file for key in needed} == set(signature.segments)
    composer = Composer(artifact)
    for key in sorted(needed):
        sha256 = hashlib.sha256(composer.segment(key)).hexdigest()
        told = signature.segments[key.file]
        assert told.sha256 == sha256
        assert verifier.is_signed(segment_statement(digest, key.file, sha256), bytes.fromhex(told.signature))
        assert not verifier.is_signed(segment_statement(digest, key.file + "x", sha256), bytes.fromhex(told.signature))
        assert not verifier.is_signed(manifest_statement(digest), bytes.fromhex(told.signature))


def test_segments_are_composed_to_the_same_bytes_as_ever() -> None:
    """A signature outlives versions of onnx (1.16, 1.18 and 1.23 gave this). If composing is changed on purpose, put the
    new digest here, and say in the CHANGELOG that models must be signed again."""
    composer = Composer(Artifact.open(DEFAULT_MODEL))
    digest = hashlib.sha256()
    for key in sorted(possible_segments(composer.artifact.manifest.plan)):
        digest.update(hashlib.sha256(composer.segment(key)).digest())
    assert digest.hexdigest() == "c88e101051f9ecc06a07fdd284eb3fa443932a2d130cbf5ee7d6917bdefe2bb2"


def test_what_is_not_signed_by_this_key_is_refused(signed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    model, _, public = signed
    digest = Artifact.open(model).manifest.digest
    other = tmp_path / "other"
    other.write_bytes(new_key()[1])
    with pytest.raises(ArtifactError, match=r"signature: expected one by the key of .*other, got another"):
        Verifier.load(other).check_artifact(model, digest)
    with pytest.raises(ArtifactError, match="expected the signature of 000000000000"):
        Verifier.load(public).check_artifact(model, "0" * 64)
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    for damage in (
        b"{}",
        b"",
        b"[" * 5000,
        (copy / SIGNATURE_FILE).read_bytes().replace(b'"format": 1', b'"format": 2'),
    ):
        (copy / SIGNATURE_FILE).write_bytes(damage)
        with pytest.raises(ArtifactError, match="expected a model's signature"):
            Verifier.load(public).check_artifact(copy, digest)
    (copy / SIGNATURE_FILE).unlink()
    with pytest.raises(ArtifactError, match=r"expected one that is signed \(model.sig.json\), got none"):
        Verifier.load(public).check_artifact(copy, digest)


def test_a_signature_can_be_renewed_in_place_but_no_folder_is_overwritten(
    signed: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    model, private, _ = signed
    copy = tmp_path / "copy"
    shutil.copytree(model, copy)
    before = contents(copy)
    sign(Artifact.open(copy), private_key(private), None)
    assert contents(copy) == before  # Ed25519 signs the same with the same
    with pytest.raises(UsageError, match="--out: expected a folder that does not exist"):
        sign(Artifact.open(copy), private_key(private), copy)


def test_keys_of_other_kinds_are_told(signed: tuple[Path, Path, Path], tmp_path: Path) -> None:
    _, private, public = signed
    key = rsa.generate_private_key(65537, 2048)
    file = tmp_path / "file"
    file.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    for path, said in ((file, "an Ed25519 public key"), (private, "a public key"), (tmp_path / "no", "a public key")):
        with pytest.raises(UsageError, match=f"--require-signed-model: expected {said}"):
            Verifier.load(path)
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    for path, said in ((file, "an Ed25519 private key"), (public, "a private key"), (tmp_path / "no", "a private key")):
        with pytest.raises(UsageError, match=f"--key: expected {said}"):
            private_key(path)


# --- TLS


def test_files_for_tls_that_do_not_fit_are_told(store: Store, tmp_path: Path) -> None:
    ca, nano, cam = (store.folder / name for name in ("authority/ca.crt", "bundles/nano", "bundles/cam"))
    assert tls_context(ca, nano / "node.crt", nano / "node.key").verify_mode is ssl.CERT_REQUIRED
    locked = tmp_path / "locked"
    key = load_pem_private_key((nano / "node.key").read_bytes(), None)
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")))
    missing = tmp_path / "missing"
    for files, said in (
        ((missing, None, None), "--ca: expected certificates .*missing: No such file"),
        ((nano / "password", None, None), "--ca: expected certificates .*not PEM"),
        ((ca, missing, None), "--cert: expected a readable file"),
        ((ca, nano / "node.crt", missing), "--key: expected a readable file"),
        ((ca, nano / "node.crt", cam / "node.key"), "--cert, --key: expected .*key of another certificate"),
        ((ca, nano / "node.crt", nano / "password"), "--cert, --key: expected .*not PEM"),
        ((ca, nano / "node.crt", locked), "--cert, --key: expected .*the key has a passphrase"),
    ):
        with pytest.raises(UsageError, match=said) as told:
            tls_context(*files)
        assert (store.folder / "bundles" / "nano" / "password").read_text().strip() not in str(told.value)


@pytest.mark.parametrize(
    ("openssl", "words", "denial"),
    [
        ("[SSL: X] certificate verify failed: certificate has expired (_ssl.c:1)", "has expired", True),
        ("certificate verify failed: certificate is not yet valid (_ssl.c:1)", "not valid yet", True),
        ("certificate verify failed: Hostname mismatch, certificate is not valid for 'a'. (_ssl.c:1)", "another name", True),
        ("certificate verify failed: CA cert does not include key usage extension (_ssl.c:1)", "not trusted: CA cert", True),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1)", "no TLS is spoken", False),
        ("[Errno 111] Connection refused", "Connection refused", False),
        ("refused: [code:136] Server unavailable", "Server unavailable", False),
        ("refused: [code:135] Not authorized", "unknown user, or wrong password", True),
    ],
)  # fmt: skip
def test_reasons_are_told_in_words(openssl: str, words: str, denial: bool) -> None:
    assert words in plain_reason(openssl)
    assert is_denial(plain_reason(openssl), again=False) is denial


def test_what_could_be_chance_counts_at_the_second_time() -> None:
    why = plain_reason("EOF occurred in violation of protocol (_ssl.c:2427)")
    assert (is_denial(why, again=False), is_denial(why, again=True)) == (False, True)


# --- settings


def test_files_for_tls_want_a_broker_with_tls() -> None:
    def agent(*flags: str) -> AgentSettings:
        return resolve_agent(["--layers", "0-1", *flags], {}).settings

    for flags, said in (
        (("--ca", "x", "--broker", "mqtt://h"), "--ca, --cert: expected --broker mqtts://HOST:PORT, got mqtt://h:1883"),
        (("--key", "x", "--broker", "mqtts://h"), "--key: expected --cert to go with it, got none"),
    ):
        with pytest.raises(UsageError, match=re.escape(said)):
            agent(*flags)
    assert agent("--ca", "x").wants_tls  # auto: then only a broker with TLS will do
    assert agent("--broker", "mqtts://h").tls() is None
    with pytest.raises(UsageError, match="--ca: expected certificates"):
        agent("--broker", "mqtts://h", "--ca", "/nowhere").tls()


def test_a_url_with_a_password_is_refused_and_not_repeated() -> None:
    for url in ("mqtt://me:hunter2@h", "mqtts://me:hunter2@h:8883", "mqtt://:hunter2@h"):
        with pytest.raises(UsageError, match=r"--password-file\), got a URL with a user in it") as told:
            resolve_agent(["--layers", "0-1", "--broker", url], {})
        assert "hunter2" not in str(told.value)
        with pytest.raises(UsageError) as of_client:
            Client(url)
        assert "hunter2" not in str(of_client.value)


async def test_files_for_tls_let_nothing_but_tls_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = discovery.Broker("plain", "p.local", ("10.0.0.1",), 1883, tls=False, marked=True)
    safe = discovery.Broker("safe", "s.local", ("10.0.0.2",), 8883, tls=True, marked=False)

    async def yes(_: object) -> bool:
        return True

    async def found(_: float) -> list[discovery.Broker]:
        return [plain, safe]

    monkeypatch.setattr(discovery, "answers", yes)
    monkeypatch.setattr(discovery, "find_brokers", found)
    assert str((await discovery.look_for_broker(has_password=False))[0]) == "mqtt://127.0.0.1:1883"
    address, _ = await discovery.look_for_broker(has_password=False, tls_only=True)
    assert str(address) == "mqtts://s.local:8883"

    async def only_plain(_: float) -> list[discovery.Broker]:
        return [plain]

    monkeypatch.setattr(discovery, "find_brokers", only_plain)
    with pytest.raises(TransportError, match="--ca and --cert want a broker with TLS only"):
        await discovery.look_for_broker(has_password=False, tls_only=True)


# --- an agent that wants signatures


def test_a_node_says_that_it_refuses_for_as_long_as_it_has_nothing_to_do() -> None:
    worker = WorkerState(WorkerConfig("nano", 1, LayerSpan(0, 9)), Random(0))
    assert worker.state == "waiting for source"
    worker.handle(0.0, ModelRefused())
    assert worker.state == "model not signed"
    worker.handle(0.1, ModelRefused(refused=False))
    assert worker.state == "waiting for source"
