"""Who owns a host, by its name: providers whose hosts have a region, a zone or a customer in them, and those of lesser fame.

What is listed here is not read by that alone. It is seen: a call that no format reads is refused under a budget, recorded without
one. Names are OpenTelemetry's where it has one, else the price table's.
"""

from __future__ import annotations

import re

#: By the end of the host's name, beside `wflo_nb.capture.formats.PROVIDERS`.
MORE: dict[str, str] = {
    "services.ai.azure.com": "azure.ai.inference",
    "models.ai.azure.com": "azure.ai.inference",
    "models.inference.ai.azure.com": "azure.ai.inference",
    "models.github.ai": "github",
    "api.cohere.ai": "cohere",
    "api.together.ai": "together",
    "api.replicate.com": "replicate",
    "router.huggingface.co": "huggingface",
    "api-inference.huggingface.co": "huggingface",
    "api.voyageai.com": "voyage",
    "dashscope.aliyuncs.com": "dashscope",
    "dashscope-intl.aliyuncs.com": "dashscope",
    "dashscope-us.aliyuncs.com": "dashscope",
    "api.cerebras.ai": "cerebras",
    "api.sambanova.ai": "sambanova",
    "integrate.api.nvidia.com": "nvidia",
    "ai.api.nvidia.com": "nvidia",
    "api.nvcf.nvidia.com": "nvidia",
    "api.studio.nebius.ai": "nebius",
    "api.studio.nebius.com": "nebius",
    "api.tokenfactory.nebius.com": "nebius",
    "api.novita.ai": "novita",
    "api.hyperbolic.xyz": "hyperbolic",
    "api.jina.ai": "jina",
    "deepsearch.jina.ai": "jina",
    "api.deepinfra.com": "deepinfra",
    "api.moonshot.ai": "moonshotai",
    "api.moonshot.cn": "moonshotai",
    "api.z.ai": "zai",
    "open.bigmodel.cn": "zai",
    "api.minimax.io": "minimax",
    "api.minimaxi.com": "minimax",
    "api.siliconflow.cn": "siliconflow",
    "api.siliconflow.com": "siliconflow",
    "api.ai21.com": "ai21",
    "api.friendli.ai": "friendliai",
    "api.lambda.ai": "lambda",
    "api.featherless.ai": "featherless",
    "api.inference.wandb.ai": "wandb",
    "ai-gateway.vercel.sh": "vercel_ai_gateway",
    "gateway.ai.cloudflare.com": "cloudflare",
    "ml.cloud.ibm.com": "ibm.watsonx.ai",
    "api.writer.com": "writer",
    "api.upstage.ai": "upstage",
    "api.aleph-alpha.com": "aleph_alpha",
    "api.stability.ai": "stability",
    "fal.run": "fal_ai",
    "api.elevenlabs.io": "elevenlabs",
    "api.deepgram.com": "deepgram",
    "api.assemblyai.com": "assemblyai",
    "codestral.mistral.ai": "mistral_ai",
}

#: Vertex by region (``us-central1-aiplatform.…``) and in its own zones; Bedrock by region, with FIPS, in China, over IPv6, inside a
#: private network, its agents and its OpenAI-compatible door.
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?:^|[.-])aiplatform(?:\.[a-z0-9-]+)?(?:\.rep)?\.googleapis\.com$"), "gcp.vertex_ai"),
    (
        re.compile(
            r"(?:^|\.)bedrock-(?:runtime|agent-runtime|agentcore|mantle)(?:-fips)?\.(?:[a-z0-9-]+\.){1,2}"
            r"(?:amazonaws\.com(?:\.cn)?|api\.aws|api\.amazonwebservices\.com\.cn)$"
        ),
        "aws.bedrock",
    ),
    (re.compile(r"(?:^|\.)ark\.[a-z0-9-]+\.(?:volces|bytepluses)\.com$"), "volcengine"),
    (re.compile(r"(?:^|\.)(?:runtime|agent-runtime)\.sagemaker(?:-fips)?\.[a-z0-9-]+\.amazonaws\.com(?:\.cn)?$"), "aws.sagemaker"),
)


def plain(host: str) -> str:
    """A host's name as it is compared: names have no case, and a dot at their end says nothing."""
    return host.lower().rstrip(".")


def owner(host: str) -> str | None:
    """Who owns a host that `plain` gave, None if it is not listed here."""
    for end, provider in MORE.items():
        if host == end or host.endswith("." + end):
            return provider
    return next((provider for names, provider in _PATTERNS if names.search(host)), None)
