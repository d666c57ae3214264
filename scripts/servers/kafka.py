"""Apache Kafka in KRaft mode: a single broker with every kind of listener, or a cluster of three.

The single broker ``kafka`` offers PLAINTEXT, SASL_PLAINTEXT (PLAIN and SCRAM-SHA-256), SSL and SASL_SSL. Who comes
without credentials may do everything, and so may alice; bob may do what no ACL forbids him. The passwords are made anew
by each ``up`` and end with it.
"""

from __future__ import annotations

import base64
import contextlib
import os
import secrets
import shlex
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from servers.fetching import jars, tool
from servers.keeping import Entry, NotReady, Ports, ServiceError, run

_POM = Path(__file__).with_name("kafka-pom.xml")
_JAVA_PACKAGE = "openjdk-17-jre-headless"
_USERS = ("alice", "bob")
TUNING = "KAFKA_JVM_PERFORMANCE_OPTS"  # Kafka's own name for it
_TOOL_TIMEOUT = 60.0
_CLIENT_TIMEOUT = 5.0
_SASL = "org.apache.kafka.common.security"

# What is the same for every broker. Few partitions of Kafka's own topics: each costs files and start-up time.
COMMON = {
    "process.roles": "broker,controller",
    "controller.listener.names": "CONTROLLER",
    "inter.broker.listener.name": "PLAINTEXT",
    "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,SSL:SSL,"
    "SASL_SSL:SASL_SSL",
    "auto.create.topics.enable": "false",
    "message.max.bytes": "10485760",
    "replica.fetch.max.bytes": "10485760",
    "group.initial.rebalance.delay.ms": "0",
    # A broker killed and started again is refused until its former life's session has run out: 9 s by default.
    "broker.session.timeout.ms": "4000",
    "broker.heartbeat.interval.ms": "500",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "4",
    "share.coordinator.state.topic.num.partitions": "4",
}


@dataclass(frozen=True)
class Kafka:
    """A cluster of ``brokers`` processes, each broker and controller in one.

    Args:
        brokers: How many.
        heap: Java heap of each, as ``-Xmx`` wants it.
        secured: Whether it has SASL and TLS listeners, users and ACLs too.
    """

    brokers: int
    heap: str
    secured: bool = False

    def fetch(self) -> None:
        tool("java", _JAVA_PACKAGE)
        jars(_POM)

    def prepare(self, name: str, folder: Path, ports: Ports) -> Entry:
        java = tool("java", _JAVA_PACKAGE)
        class_path = ":".join(map(str, jars(_POM)))
        protocols = ("PLAINTEXT", "SASL_PLAINTEXT", "SSL", "SASL_SSL") if self.secured else ("PLAINTEXT",)
        controllers = [f"127.0.0.1:{ports.take()}" for _ in range(self.brokers)]
        addresses: dict[str, list[str]] = {
            protocol: [f"127.0.0.1:{ports.take()}" for _ in range(self.brokers)] for protocol in protocols
        }
        entry: Entry = {
            "kind": "kafka",
            "bootstrap": ",".join(addresses["PLAINTEXT"]),
            "addresses": {protocol.lower(): ",".join(each) for protocol, each in addresses.items()},
            "users": {user: secrets.token_hex(12) for user in _USERS} if self.secured else {},
            "processes": {},
        }
        common = {**COMMON, **cluster_settings(controllers)}
        if self.secured:
            common |= _security(entry["users"]) | _certificates(folder)
            entry["ca_file"] = str(folder / "ca.pem")
        cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "_")
        for index in range(self.brokers):
            broker = name if self.brokers == 1 else f"{name}-{index + 1}"
            home = folder / broker
            home.mkdir(mode=0o700)
            listeners = [f"{protocol}://{addresses[protocol][index]}" for protocol in protocols]
            properties = common | {
                "node.id": str(index + 1),
                "listeners": ",".join([*listeners, f"CONTROLLER://{controllers[index]}"]),
                "log.dirs": str(home / "data"),
            }
            config = home / "server.properties"
            config.touch(mode=0o600)
            config.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
            _format([java, "-XX:TieredStopAtLevel=1", "-cp", class_path], config, cluster_id, entry["users"])
            tuning = shlex.split(os.environ.get(TUNING, ""))
            # What it unpacks (compression) and notes for tools goes with its folder, however it ends.
            own = ["-XX:-UsePerfData", f"-Djava.io.tmpdir={home}"]
            options = [f"-Xmx{self.heap}", *own, *tuning, "-Dlog4j2.level=INFO", "-cp", class_path]
            entry["processes"][broker] = {
                "node": index + 1,
                "address": addresses["PLAINTEXT"][index],
                "log": str(home / "broker.log"),
                "command": [java, *options, "kafka.Kafka", str(config)],
            }
        return entry

    def round_trip(self, entry: Entry, names: list[str]) -> None:
        """Create a topic on all brokers that run, send a record, read it back in a group, remove topic and group."""
        from kafka.errors import KafkaError

        try:
            self._round_trip(entry, names)
        except KafkaError as exc:
            raise NotReady(f"{type(exc).__name__}: {exc}") from exc

    def _round_trip(self, entry: Entry, names: list[str]) -> None:
        from kafka import KafkaConsumer, KafkaProducer
        from kafka.admin import KafkaAdminClient

        milliseconds = int(_CLIENT_TIMEOUT * 1000)
        processes = entry["processes"]
        client: dict[str, Any] = {
            "bootstrap_servers": [processes[name]["address"] for name in names],
            "bootstrap_timeout_ms": milliseconds,
        }
        token = secrets.token_hex(8)
        topic = f"comux-services-ready-{token}"
        with contextlib.ExitStack() as stack:
            admin = KafkaAdminClient(**client)
            stack.callback(admin.close)
            brokers = admin.describe_cluster()["brokers"]
            nodes = {broker["broker_id"] for broker in brokers if not broker.get("is_fenced")}
            if missing := [name for name in names if processes[name]["node"] not in nodes]:
                raise NotReady(f"{', '.join(missing)} not yet in the cluster, which has nodes {sorted(nodes)}")
            details = {"num_partitions": 1, "replication_factor": len(nodes), "configs": {"min.insync.replicas": "1"}}
            stack.callback(lambda: admin.delete_topics([topic], raise_errors=False))
            admin.create_topics({topic: details}, wait_for_metadata=True)
            producer = KafkaProducer(**client, acks="all", max_block_ms=milliseconds)
            stack.callback(producer.close, timeout=_CLIENT_TIMEOUT)
            producer.send(topic, token.encode()).get(timeout=_CLIENT_TIMEOUT)
            stack.callback(lambda: admin.delete_groups([topic]))
            consumer = KafkaConsumer(
                topic, **client, group_id=topic, auto_offset_reset="earliest", consumer_timeout_ms=milliseconds
            )
            stack.callback(consumer.close)
            record = next(consumer, None)
            if record is None or record.value != token.encode():
                raise NotReady(f"a record sent to {topic} did not come back within {_CLIENT_TIMEOUT:.0f} s")


def cluster_settings(controllers: list[str]) -> dict[str, str]:
    """Who the controllers are, by node id from 1 on, and how many copies there are of everything: all, one for each."""
    copies, in_sync = str(len(controllers)), str(len(controllers) // 2 + 1)
    return {
        "controller.quorum.voters": ",".join(f"{node}@{each}" for node, each in enumerate(controllers, 1)),
        "default.replication.factor": copies,
        "min.insync.replicas": in_sync,
        "offsets.topic.replication.factor": copies,
        "transaction.state.log.replication.factor": copies,
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.replication.factor": copies,
        "share.coordinator.state.topic.min.isr": in_sync,
    }


def _format(java: list[str], config: Path, cluster_id: str, users: dict[str, str]) -> None:
    command = [*java, "kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(config)]
    for user, password in users.items():
        command += ["--add-scram", f"SCRAM-SHA-256=[name={user},password={password}]"]
    code, output = run(command, timeout=_TOOL_TIMEOUT)
    if code != 0:
        raise ServiceError(f"Kafka's data folder could not be formatted (exit code {code}):\n{output[-3000:]}")


def _security(users: dict[str, str]) -> dict[str, str]:
    """Users of both mechanisms on both SASL listeners, and ACLs."""
    plain = " ".join(f'user_{user}="{password}"' for user, password in users.items())
    properties = {
        "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256",
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS;User:alice",
        "allow.everyone.if.no.acl.found": "true",
    }
    for listener in ("sasl_plaintext", "sasl_ssl"):
        key = f"listener.name.{listener}"
        properties[f"{key}.plain.sasl.jaas.config"] = f"{_SASL}.plain.PlainLoginModule required {plain};"
        properties[f"{key}.scram-sha-256.sasl.jaas.config"] = f"{_SASL}.scram.ScramLoginModule required;"
    return properties


def _certificates(folder: Path) -> dict[str, str]:
    """An authority of this server's own (``ca.pem``), and the broker's certificate for 127.0.0.1 signed by it."""
    store, ca_file, password = folder / "broker.p12", folder / "ca.pem", secrets.token_hex(12)
    keytool = tool("keytool", _JAVA_PACKAGE)
    pair = ["-genkeypair", "-keyalg", "EC", "-groupname", "secp256r1", "-validity", "3650"]
    authority = [*pair, "-alias", "ca", "-dname", "CN=comux services", "-ext", "bc:c=ca:true"]
    broker = [*pair, "-alias", "broker", "-signer", "ca", "-dname", "CN=127.0.0.1"]
    for arguments in (
        [*authority, "-ext", "ku:c=keyCertSign,cRLSign"],
        [*broker, "-ext", "san=ip:127.0.0.1,dns:localhost", "-ext", "ku:c=digitalSignature", "-ext", "eku=serverAuth"],
        ["-exportcert", "-rfc", "-alias", "ca", "-file", str(ca_file)],
        ["-delete", "-alias", "ca"],  # nobody signs with it again, and the broker must not show it as its own
    ):
        command = [keytool, "-J-XX:TieredStopAtLevel=1", *arguments, "-storetype", "PKCS12", "-keystore", str(store)]
        code, output = run([*command, "-storepass:env", "STORE"], timeout=_TOOL_TIMEOUT, env={"STORE": password})
        if code != 0:
            raise ServiceError(f"keytool {arguments[0]} failed (exit code {code}):\n{output[-3000:]}")
    return {
        "ssl.keystore.type": "PKCS12",
        "ssl.keystore.location": str(store),
        "ssl.keystore.password": password,
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(ca_file),
    }
