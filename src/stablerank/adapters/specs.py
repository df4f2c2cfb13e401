"""The recipe's ``adapter`` section: what trains and how it is parameterised, as a union on ``kind``.

Three families. Low-rank adapters are PEFT configurations, which any PEFT or TRL script takes
(``peft_config=GeoraSpec(r=16).peft_config()``). ``bitfit``, ``sparse`` and ``full`` train the model's own parameters in
place. ``saved`` goes on with an adapter that was trained before.

The scale of an update is ``alpha / r`` (``alpha / sqrt(r)`` for rsLoRA). Methods that start from the weight's own
triplets take ``alpha = r`` unless told: another scale would extract a multiple of them (METHODS.md 2.2).
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from stablerank.adapters.config import SpectralLoraConfig
from stablerank.errors import ModelError


class _Spec(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    kind: str
    in_place: ClassVar[bool] = False
    """Whether the model's own parameters train: fp32 masters, and no adapter to take off."""
    refuses_weight_decay: ClassVar[str] = ""
    """Why weight decay would not mean what it says; empty where it does."""
    refuses_spectral_steps: ClassVar[str] = ""
    """Why a step along a polar factor is not for its parameters; empty where it is."""


class _LowRank(_Spec):
    """What all low-rank adapters share: factors in fp32, on linear layers."""

    r: int = Field(16, ge=1)
    alpha: float | None = Field(None, gt=0)
    dropout: float = Field(0.0, ge=0, lt=1)
    targets: str | list[str] = "all-linear"

    _PEFT_SETTINGS: ClassVar[dict[str, Any]] = {}

    def spectral(self) -> dict[str, Any] | None:
        """The configuration's ``spectral`` field: a method of ours and its settings; None for PEFT's own."""
        return None

    def peft_config(self) -> SpectralLoraConfig:
        """The PEFT configuration of this adapter, for `get_peft_model` or a TRL trainer."""
        return SpectralLoraConfig(
            r=self.r,
            lora_alpha=self.r if self.alpha is None else self.alpha,
            lora_dropout=self.dropout,
            target_modules=self.targets,
            task_type="CAUSAL_LM",
            spectral=self.spectral(),
            **self._PEFT_SETTINGS,
        )


class LoraSpec(_LowRank):
    """Low-rank adaptation (Hu et al. 2021): the update is ``alpha / r * B @ A``, B zero at first."""

    kind: Literal["lora"] = "lora"
    alpha: float | None = Field(32, gt=0)


class RsloraSpec(_LowRank):
    """Rank-stabilised LoRA (Kalajdzievski 2023): the scale is ``alpha / sqrt(r)``."""

    kind: Literal["rslora"] = "rslora"
    alpha: float | None = Field(8, gt=0)
    _PEFT_SETTINGS: ClassVar[dict[str, Any]] = {"use_rslora": True}


class DoraSpec(_LowRank):
    """Weight-decomposed LoRA (Liu et al. 2024): direction by LoRA, row magnitudes trained beside it."""

    kind: Literal["dora"] = "dora"
    alpha: float | None = Field(32, gt=0)
    _PEFT_SETTINGS: ClassVar[dict[str, Any]] = {"use_dora": True}


class EvaSpec(_LowRank):
    """EVA (Paischer et al. 2024) through PEFT: A spans the leading directions of the inputs, B is zero at first."""

    kind: Literal["eva"] = "eva"
    alpha: float | None = Field(32, gt=0)
    _PEFT_SETTINGS: ClassVar[dict[str, Any]] = {"init_lora_weights": "eva"}


class _Spectral(_LowRank):
    """A low-rank adapter of ours: every setting beyond LoRA's goes into the configuration."""

    def spectral(self) -> dict[str, Any]:
        """The method's name and settings."""
        settings = self.model_dump(mode="json", exclude=set(_LowRank.model_fields))
        return {"method": self.kind, **settings}


class _Difference(_Spectral):
    """``W x + s (B A x - B0 A0 x)`` on the untouched weight: exactly the base at step 0."""

    refuses_weight_decay: ClassVar[str] = "it pulls B A to zero and so the update to -s B0 A0"


class PissaSpec(_Difference):
    """PiSSA (Meng et al. 2024): B0 A0 is the head of the weight, its r leading triplets."""

    kind: Literal["pissa"] = "pissa"
    svd: Literal["randomised", "exact"] = "randomised"


class MiloraSpec(_Difference):
    """MiLoRA (Wang et al. 2024): B0 A0 is the tail of the weight, its r smallest triplets."""

    kind: Literal["milora"] = "milora"


class GeoraSpec(_Difference):
    """GeoRA (2601.09361): B0 A0 are triplets of the weight's small entries, those small in W or in its head."""

    kind: Literal["geora"] = "geora"
    rho: float = Field(0.2, gt=0, le=1)
    """Share of the entries that each mask keeps."""
    spectral_mask: bool = True
    euclidean_mask: bool = True
    component: Literal["head", "tail", "random"] = "head"
    """Which triplets of the masked weight; the paper's ablations are ``tail`` and ``random``."""
    svd: Literal["randomised", "exact"] = "randomised"


class OloraSpec(_Difference):
    """OLoRA (Buyukakyuz 2024) through PEFT: B0 A0 are the leading columns of the weight's QR."""

    kind: Literal["olora"] = "olora"


class CordaSpec(_Difference):
    """CorDA (Yang et al. 2024) through PEFT: triplets of the weight in the metric of its inputs."""

    kind: Literal["corda"] = "corda"


class PolarSpec(_Spectral):
    """PoLAR (2506.03133): the update is ``alpha / r * X @ Theta @ Y^T`` with orthonormal X and Y."""

    kind: Literal["polar"] = "polar"
    theta: Literal["free", "diagonal", "identity"] = "free"
    penalty: float = Field(5e-3, ge=0)
    """Factor of the pull back to orthonormality in the landing field."""
    half_skew: bool = False
    """Whether the skew part carries the factor 1/2, as in Ablin and Peyre; the authors' code has none."""
    gradient: Literal["landing", "euclidean"] = "landing"
    refuses_weight_decay: ClassVar[str] = "it pulls X and Y off the orthonormal matrices"
    refuses_spectral_steps: ClassVar[str] = "X and Y follow the landing field, which a polar factor would not"


class SineSpec(_Spectral):
    """SineLoRA (2403.19243): the update is ``alpha / r * sin(omega B @ A) / gain``, entry by entry."""

    kind: Literal["sinelora"] = "sinelora"
    alpha: float | None = Field(32, gt=0)
    omega: float = Field(gt=0)
    """The frequency; there is no default that fits every rank, and 0 would train nothing."""
    gain: float | None = Field(None, gt=0)
    """None: the root of the layer's input features."""


class _InPlace(_Spec):
    in_place: ClassVar[bool] = True

    def peft_config(self) -> None:
        """No adapter."""
        return None


class BitfitSpec(_InPlace):
    """BitFit (Ben Zaken et al. 2022): only biases train; ``added`` gives a model without biases zero ones."""

    kind: Literal["bitfit"] = "bitfit"
    biases: Literal["existing", "added"] = "existing"
    refuses_spectral_steps: ClassVar[str] = "no matrix is trained"


class SparseSpec(_InPlace):
    """SparseFT (in 2601.09361): only masked entries of the linear weights train, by default GeoRA's union."""

    kind: Literal["sparse"] = "sparse"
    rho: float = Field(0.2, gt=0, le=1)
    spectral_mask: bool = True
    euclidean_mask: bool = True
    rank: int = Field(16, ge=1)
    """Rank of the head whose small entries the spectral mask keeps."""
    refuses_weight_decay: ClassVar[str] = "it moves the entries off the mask"
    refuses_spectral_steps: ClassVar[str] = "a polar factor moves the entries off the mask"


class FullSpec(_InPlace):
    """Every weight trains, with fp32 masters: bf16 ones swallow small steps, so ``bfloat16`` means autocast."""

    kind: Literal["full"] = "full"


class SavedSpec(_Spec):
    """Go on with an adapter that was trained before, such as an SFT one: method and rank are its own.

    The reference policy of GRPO and DPO is the base with that adapter as it was loaded.
    """

    kind: Literal["saved"] = "saved"
    path: str
    """The folder that ``save_pretrained`` wrote."""

    def peft_config(self) -> SpectralLoraConfig:
        """The configuration in the folder.

        Raises:
            ModelError: there is none, or it is not of LoRA's kind.
        """
        try:
            config = SpectralLoraConfig.from_pretrained(self.path)
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise ModelError(
                f"adapter.path {self.path!r} holds no PEFT adapter ({' '.join(str(error).split())[:200]}); name the "
                "folder of an adapter that save_pretrained wrote."
            ) from error
        if not isinstance(config, SpectralLoraConfig):
            raise ModelError(f"adapter.path {self.path!r} is a {config.peft_type} adapter; only LoRA's kind goes on.")
        return config


LowRankSpec = (
    LoraSpec
    | RsloraSpec
    | DoraSpec
    | EvaSpec
    | PissaSpec
    | MiloraSpec
    | GeoraSpec
    | OloraSpec
    | CordaSpec
    | PolarSpec
    | SineSpec
)
"""Adapters that PEFT adds to a model."""
InPlaceSpec = BitfitSpec | SparseSpec | FullSpec
"""Methods that train the model's own parameters."""
AdapterSpec = Annotated[LowRankSpec | InPlaceSpec | SavedSpec, Field(discriminator="kind")]
"""What a recipe's ``adapter`` section may be."""
