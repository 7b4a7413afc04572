"""MNIST, from torchvision's download or from class folders of PNG files."""

from dataclasses import dataclass

from .official import Official


@dataclass(kw_only=True, eq=False, repr=False)
class MNIST(Official):
    """MNIST (LeCun, Cortes and Burges 1998): 60,000 training and 10,000 test digits, 28 x 28 grey.

    Args:
        root: a folder that holds torchvision's download (`MNIST/raw`), or `train/<class>/*.png`
            and `test/<class>/*.png`.
        download: fetch what is missing of the download, unless there are class folders.
        flip: mirror half of the training images; digits are not symmetric, so the default is off.
    """

    num_classes = 10
    in_channels = 1
    image_size = 28
    class_names = tuple("0123456789")
    mean = (0.1307,)
    std = (0.3081,)

    crop_padding: int | None = 2
    flip: bool = False

    def archive(self) -> str:
        """The folder of the download within `root`."""
        return "MNIST/raw"
