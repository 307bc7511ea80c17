"""The user's one dict, or one TOML file: validated once, with defaults, and not seen again.

Every error names the key, the wrong value and the remedy. Keys that are not given come from the environment.
"""

from llm_gateway.config.addresses import NO_ADDRESS, is_address
from llm_gateway.config.endpoints import DEFAULT_URLS, KEY_VARIABLES, URL_VARIABLES, Endpoint, endpoint_of
from llm_gateway.config.loading import BUILT_IN_PROVIDERS, DEFAULT_MODELS, load_config, of_type, read_config
from llm_gateway.config.settings import (
    SAFETY_OF_REQUESTS,
    SAFETY_OF_TOKENS,
    BatchingSettings,
    BudgetSettings,
    CacheSettings,
    Charge,
    EmbeddingSettings,
    FurtherDeployment,
    GatewayConfig,
    LimitSettings,
    LogSettings,
    ModelSettings,
    PriceSettings,
    ProviderBatchSettings,
    ProviderSettings,
    RetrySettings,
    SharedSettings,
)

__all__ = [
    "BUILT_IN_PROVIDERS",
    "DEFAULT_MODELS",
    "DEFAULT_URLS",
    "KEY_VARIABLES",
    "NO_ADDRESS",
    "SAFETY_OF_REQUESTS",
    "SAFETY_OF_TOKENS",
    "URL_VARIABLES",
    "BatchingSettings",
    "BudgetSettings",
    "CacheSettings",
    "Charge",
    "EmbeddingSettings",
    "Endpoint",
    "FurtherDeployment",
    "GatewayConfig",
    "LimitSettings",
    "LogSettings",
    "ModelSettings",
    "PriceSettings",
    "ProviderBatchSettings",
    "ProviderSettings",
    "RetrySettings",
    "SharedSettings",
    "endpoint_of",
    "is_address",
    "load_config",
    "of_type",
    "read_config",
]
