"""Who may do what on the broker that tests run against: credentials as comux takes them, and rules (ACLs)."""

from __future__ import annotations

from typing import Any

from kafka.admin import ACL, ACLOperation, ACLPermissionType, KafkaAdminClient, ResourcePattern, ResourceType
from service_fixtures import KafkaCluster, until


def credentials(kafka: KafkaCluster, user: str, mechanism: str = "PLAIN", tls: bool = False) -> dict[str, Any]:
    """Client options with which ``user`` gets in at ``address_of(kafka, tls)``."""
    options = {
        "security_protocol": "SASL_SSL" if tls else "SASL_PLAINTEXT",
        "sasl_mechanism": mechanism,
        "sasl_plain_username": user,
        "sasl_plain_password": kafka.users[user],
    }
    return {**options, "ssl_cafile": kafka.ca_file} if tls else options


def address_of(kafka: KafkaCluster, tls: bool = False) -> str:
    return f"kafka://{kafka.sasl_ssl if tls else kafka.sasl}"


class Rules:
    """Rules for bob, taken back at the end. Who is under no rule may do everything."""

    def __init__(self, kafka: KafkaCluster) -> None:
        self._admin = KafkaAdminClient(bootstrap_servers=kafka.bootstrap)
        self._made: list[Any] = []

    def forbid(self, kind: str, name: str, operation: str) -> None:
        """Bob may do everything with this topic, group or cluster but ``operation``."""
        if kind != "CLUSTER":
            self._make(kind, name, "ALL", "ALLOW")
        self._make(kind, name, operation, "DENY")

    def _make(self, kind: str, name: str, operation: str, permission: str) -> None:
        pattern = ResourcePattern(getattr(ResourceType, kind), name)
        rule = ACL("User:bob", "*", getattr(ACLOperation, operation), getattr(ACLPermissionType, permission), pattern)
        self._admin.create_acls([rule])
        self._made.append(rule)
        until(lambda: self._admin.describe_acls(rule)[0], "the broker knows the rule")

    def lift(self) -> None:
        """Take every rule back."""
        made, self._made = self._made, []
        if made:
            self._admin.delete_acls(made)

    def close(self) -> None:
        self.lift()
        self._admin.close()
