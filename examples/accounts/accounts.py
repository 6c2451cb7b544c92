"""Account lookup: which plan and country a user's account has, asked of a service over HTTP."""

import os
from typing import Any

import httpx
import pyarrow as pa

from millrace.api import LookupTransform


class LookUpAccount(LookupTransform):
    """Add `account_plan` and `account_country` by `user_id`; users whom the service does not know have neither.

    Args:
        url: of the service; GET url/USER answers {"plan": ..., "country": ...}, or 404.
        token_from: the environment variable that holds the service's token. The token itself is in no file.
    """

    adds = {"account_plan": pa.string(), "account_country": pa.string()}
    version = "1"
    key = "user_id"

    def __init__(self, url: str, token_from: str = "") -> None:
        self._url = url.rstrip("/")
        self._token_from = token_from

    async def start(self) -> None:
        token = os.environ[self._token_from] if self._token_from else ""
        self._client = httpx.AsyncClient(headers={"Authorization": f"Bearer {token}"} if token else {})

    async def look_up(self, key: str) -> dict[str, Any] | None:
        answer = await self._client.get(f"{self._url}/{key}")
        if answer.status_code == httpx.codes.NOT_FOUND:
            return None
        answer.raise_for_status()
        account = answer.json()
        return {"account_plan": account.get("plan"), "account_country": account.get("country")}
