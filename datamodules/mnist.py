"""MNIST, from torchvision's download."""

from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from .base import ImageDataModule


class MNIST(ImageDataModule):
    """Handwritten digits, 28 x 28 grey (LeCun, Cortes and Burges 1998): 60,000 and 10,000 images.

    Args:
        root: a folder that holds torchvision's download (`MNIST/raw`).
        download: fetch it into `root` where it is not there.
        crop_padding: pixels of zero padding before the random crop; 0 crops nothing.
        flip: mirror half of the training images; digits are not symmetric.
        common: see `ImageDataModule`.
    """

    num_classes = 10
    in_channels = 1
    image_size = 28
    class_names = tuple("0123456789")
    mean = (0.1307,)
    std = (0.3081,)

    def __init__(
        self,
        root: str = "data",
        download: bool = False,
        crop_padding: int = 2,
        flip: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(crop_padding=crop_padding, flip=flip, **common)
        self.root, self.download = Path(root).expanduser(), download

    def prepare_data(self) -> None:
        """Download where that was asked for; torchvision keeps what is there."""
        if self.download:
            self._read("train", download=True)
        super().prepare_data()

    def load(self, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
        """Read one split."""
        folder = self.root / "MNIST" / "raw"
        if not folder.is_dir():
            raise FileNotFoundError(
                f"no MNIST in {str(self.root)!r}: MNIST/raw/ is not there. Give its folder with "
                "--data.root DIR, or add --data.download true to fetch it"
            )
        data = self._read(split, download=False)
        return data.data.unsqueeze(1), data.targets

    def _read(self, split: str, *, download: bool):
        from torchvision import datasets

        try:
            data = datasets.MNIST(str(self.root), split == "train", download=download)
            if len(data.data) != len(data.targets) or data.data.shape[1:] != (28, 28):
                raise ValueError(f"{len(data.targets)} labels of images {tuple(data.data.shape)}")
            if not 0 <= int(data.targets.min()) <= int(data.targets.max()) <= 9:
                raise ValueError("a label is out of the range 0 to 9")
        except Exception as error:
            remedy = (
                "check the connection" if download else "delete it and add --data.download true"
            )
            raise RuntimeError(
                f"MNIST in {str(self.root / 'MNIST' / 'raw')!r} cannot be had ({error}); {remedy}"
            ) from error
        return data
