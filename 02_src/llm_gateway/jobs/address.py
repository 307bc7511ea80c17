"""The address of a job in a database, and how it is shown: never with its password."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Self
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from llm_gateway.errors import ConfigurationError

SCHEMES = ("postgresql", "postgres")
JOB = "job"  # the parameter that names the job; all others are libpq's
LONGEST_NAME = 200


def is_database(place: object) -> bool:
    """Whether a job's place is an address of a database and no path."""
    return isinstance(place, str) and place.partition("://")[0] in SCHEMES


@dataclass(frozen=True, slots=True, kw_only=True)
class JobAddress:
    """`postgresql://user@host/database?job=name`: a database, and a job in it."""

    dsn: str = field(repr=False)  # as libpq takes it; it may hold a password
    database: str  # the address without password, parameters and job
    name: str | None  # of the job; None: no job was named

    @classmethod
    def parse(cls, url: str) -> Self:
        """Read an address. Raises ConfigurationError, which does not repeat what may be a password."""
        if not is_database(url):
            raise ConfigurationError(
                "The address of a job in a database reads postgresql://user@host/database?job=NAME."
            )
        try:
            parts = urlsplit(url)
            parameters = parse_qsl(parts.query, keep_blank_values=True)
        except ValueError:
            raise ConfigurationError("The address of the job's database is malformed.") from None
        # A password with a slash or a question mark in it would end up where hosts and names are shown.
        if "@" in f"{parts.path}?{parts.query}" or parts.fragment:
            raise ConfigurationError(
                "The address of the job's database is malformed: write @ as %40, / as %2F, ? as %3F and # as %23 "
                "in its user, password and names."
            )
        names = [value for name, value in parameters if name == JOB]
        rest = [(name, value) for name, value in parameters if name != JOB]
        credentials, _, host = parts.netloc.rpartition("@")
        user = credentials.partition(":")[0]
        query = f"?{urlencode(rest, quote_via=quote)}" if rest else ""
        return cls(
            dsn=f"postgresql://{parts.netloc}{parts.path}{query}",
            database=f"postgresql://{f'{user}@' if user else ''}{host}{parts.path}",
            name=_checked(names[0]) if names else None,
        )

    @classmethod
    def of_job(cls, url: str) -> Self:
        """Read the address of a job. Raises ConfigurationError."""
        address = cls.parse(url)
        if address.name is None:
            raise ConfigurationError(f"The address {address.database} names no job; add ?job=NAME to it.")
        return address

    @property
    def shown(self) -> str:
        """The address, without what may be secret."""
        return self.database if self.name is None else f"{self.database}?{JOB}={quote(self.name, safe='')}"

    def of(self, name: str) -> JobAddress:
        """Return the address of another job in this database."""
        return replace(self, name=name)

    def without_secrets(self, text: str) -> str:
        """Return `text` with the password of this address taken out, wherever it came from."""
        parts = urlsplit(self.dsn)
        secrets = [parts.netloc.rpartition("@")[0].partition(":")[2]]
        secrets += [value for name, value in parse_qsl(parts.query) if "password" in name]
        for secret in secrets:
            for form in (secret, unquote(secret)):
                text = text.replace(form, "…") if form else text
        return text


def _checked(name: str) -> str:
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise ConfigurationError(f"job: the name of a job has 1 to {LONGEST_NAME} printable characters.")
    return name
