"""What a server may be told: where it listens, whom it lets in and how much it takes."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

from pydantic import Field, SecretStr

from dina_lrm.config import Config
from dina_lrm.errors import ConfigError

__all__ = ["KEYS_VARIABLE", "ServeSettings", "read_keys"]

KEYS_VARIABLE = "DINA_LRM_API_KEYS"
SHORTEST_KEY = 16
MIB = 2**20
ORIGIN = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\])(:[0-9]{1,5})?")
HOST = re.compile(r"[A-Za-z0-9._-]+|\[?[0-9A-Fa-f]*(:[0-9A-Fa-f]*){2,7}\]?")
LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


class ServeSettings(Config):
    """Settings of a server. Sizes are in bytes, times in seconds unless the name says otherwise.

    Attributes:
        host: address to listen at.
        port: 0 takes a free one.
        max_batch_size: noised states in one forward pass.
        max_wait_ms: how long a state waits for others to join it.
        max_queue: states that may wait; beyond it requests are refused with 429.
        max_connections: beyond it requests are refused with 503.
        max_body_bytes: of one request.
        max_held_bytes: of all requests being read or answered together, with their pictures decoded.
        max_client_share: of `max_held_bytes`, that the requests of one client may hold.
        max_samples: candidates in one request.
        max_states: samples x levels x draws of one request.
        max_pixels: of one picture, read from its header before it is decoded.
        max_request_pixels: of all pictures of one request together.
        max_latent_elements: of one sample's latents, all channels.
        max_prompt_tokens: of one prompt's embeddings.
        max_prompt_chars: of one prompt's text.
        header_timeout: for a request's headers to arrive.
        body_timeout: a body has so much time, and more the longer it is:
        body_bytes_per_second: what it must bring on average beyond that time.
        drain_timeout: for work that was accepted, after SIGTERM.
        api_keys: whoever shows one is let in; with none, everybody is.
        no_auth: listen beyond this machine without keys.
        allow_load: models may be loaded and unloaded over HTTP, by whoever has a key.
        allowed_hosts: names that the Host header may carry, besides those of this machine and of `allowed_origins`. With none
            given a server on loopback without keys allows only these, so that no web page reaches it under another name;
            every other server then answers to any name.
        allowed_origins: where this server's page may be seen besides its own address, such as https://rewards.example behind a
            proxy. Pages of no other origin may post, as long as the server answers to no name that they may take.
        log_prompts: prompts appear in the log.
    """

    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)
    max_batch_size: int = Field(8, ge=1)
    max_wait_ms: float = Field(10.0, ge=0)
    max_queue: int = Field(512, ge=1)
    max_connections: int = Field(4096, ge=1)
    max_body_bytes: int = Field(64 * MIB, ge=1)
    max_held_bytes: int = Field(4096 * MIB, ge=1)
    max_client_share: float = Field(0.5, gt=0, le=1)
    max_samples: int = Field(256, ge=1)
    max_states: int = Field(4096, ge=1)
    max_pixels: int = Field(25_000_000, ge=1)
    max_request_pixels: int = Field(100_000_000, ge=1)
    max_latent_elements: int = Field(2**21, ge=1)
    max_prompt_tokens: int = Field(2048, ge=1)
    max_prompt_chars: int = Field(20_000, ge=1)
    header_timeout: float = Field(10.0, gt=0)
    body_timeout: float = Field(20.0, gt=0)
    body_bytes_per_second: float = Field(65536, gt=0)
    drain_timeout: float = Field(60.0, ge=0)
    api_keys: tuple[SecretStr, ...] = ()
    no_auth: bool = False
    allow_load: bool = False
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    log_prompts: bool = False

    @property
    def max_client_bytes(self) -> int:
        """That the requests of one client may hold."""
        return int(self.max_client_share * self.max_held_bytes)

    @property
    def is_loopback(self) -> bool:
        """Only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def guarded(self) -> ServeSettings:
        """The same, fit to listen: who may come in is settled.

        Raises:
            ConfigError: others could reach a server that asks nobody for a key, or an origin or a host is none.
        """
        for host in self.allowed_hosts:
            if not HOST.fullmatch(host):
                raise ConfigError(f"a host is a name or an address without a port, as in rewards.example, got {host!r}")
        for origin in self.allowed_origins:
            if not ORIGIN.fullmatch(origin):
                raise ConfigError(f"an origin is scheme and host, as in https://rewards.example:8443, got {origin!r}")
        if not self.api_keys and self.allow_load:
            raise ConfigError(
                f"loading models over HTTP needs API keys; set {KEYS_VARIABLE} or give --api-key-file, or leave --allow-load out"
            )
        if not (self.api_keys or self.no_auth or self.is_loopback):
            raise ConfigError(
                f"host {self.host!r} can be reached from other machines and no API key is set; set {KEYS_VARIABLE}, give "
                "--api-key-file, listen at 127.0.0.1, or say --no-auth"
            )
        if not self.allowed_hosts and (self.api_keys or not self.is_loopback):
            return self
        seen_as = [host_name(origin.partition("://")[2]) for origin in self.allowed_origins]
        known = [*self.allowed_hosts, *LOOPBACK_NAMES, self.host, *seen_as]
        return self.model_copy(update={"allowed_hosts": tuple(dict.fromkeys(name for name in known if name))})


def host_name(host: str) -> str:
    """Of a Host header: without the port, and without the brackets of an IPv6 address."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def read_keys(text: str, separator: str | None) -> tuple[SecretStr, ...]:
    """API keys out of a file's or a variable's text.

    Args:
        text: the keys; in a file, lines that begin with # are left out.
        separator: between keys; None for lines.

    Returns:
        Each key once.

    Raises:
        ConfigError: a key that could be guessed, or that no header can carry.
    """
    parts = text.split(separator) if separator else [line for line in text.splitlines() if line.lstrip()[:1] != "#"]
    keys = dict.fromkeys(part.strip() for part in parts if part.strip())
    for place, key in enumerate(keys, start=1):
        if len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                f"API key {place} must be {SHORTEST_KEY} or more printable ASCII characters without spaces, "
                f"it has {len(key)} characters"
            )
    return tuple(SecretStr(key) for key in keys)


def read_key_file(path: Path) -> tuple[SecretStr, ...]:
    """API keys of a file, one a line.

    Raises:
        ConfigError: the file cannot be read, or holds no key.
    """
    try:
        keys = read_keys(path.read_text(encoding="utf-8"), None)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the API key file {path} cannot be read: {error}") from error
    if not keys:
        raise ConfigError(f"the API key file {path} holds no key; write one a line")
    return keys
