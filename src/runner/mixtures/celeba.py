"""CelebA: faces with 40 attributes, in the layout that its authors publish and in torchvision's."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from runner.config.kinds import NonNegativeInt, PositiveInt
from runner.errors import Problem, UserError
from runner.mixtures.base import Annotation, Dataset, Example, Mixture, Split, check_tasks
from runner.mixtures.images import augment, bytes_of, pixels, scaled
from runner.mixtures.locate import locate, missing
from runner.mixtures.published import Progress, Published
from runner.specs import InputSpec

if TYPE_CHECKING:
    from PIL.Image import Image

_ATTRIBUTES = """
    5_o_clock_shadow arched_eyebrows attractive bags_under_eyes bald bangs big_lips big_nose black_hair
    blond_hair blurry brown_hair bushy_eyebrows chubby double_chin eyeglasses goatee gray_hair heavy_makeup
    high_cheekbones male mouth_slightly_open mustache narrow_eyes no_beard oval_face pale_skin pointy_nose
    receding_hairline rosy_cheeks sideburns smiling straight_hair wavy_hair wearing_earrings wearing_hat
    wearing_lipstick wearing_necklace wearing_necktie young
"""
ATTRIBUTES = tuple(_ATTRIBUTES.split())
"""The archive's names in lower case, in its order."""

PLACES = {
    "labels": ("Anno/list_attr_celeba.txt", "list_attr_celeba.txt"),
    "partition": ("Eval/list_eval_partition.txt", "list_eval_partition.txt"),
    "images": ("Img/img_align_celeba", "img_align_celeba"),
}
"""What is needed, and where it may lie: as published, or all in one folder."""

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
PAGE = "https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html"


class CelebA(Mixture):
    """Aligned faces; tasks are attributes, by their names in lower case, such as `smiling` and `5_o_clock_shadow`.

    Layout: Img/img_align_celeba/000001.jpg …, Anno/list_attr_celeba.txt, Eval/list_eval_partition.txt, or the three
    beside one another. The splits are the published ones. Where `runner data prepare` has decoded the faces at this
    size, those are read, without the images.

    Args:
        path: the archive's folder, see `runner.mixtures.locate`.
        size: (H, W) of what the backbone sees.
        fit: "resize" stretches to `size`; "crop" keeps the proportions and cuts out the centre.
        flip: mirror every second training example.
        cache_mb: decoded faces kept per process.
    """

    input_kind = "image"
    option = "celeba"
    published = Published(
        home=PAGE,
        by_hand=(
            f"read and accept the agreement on {PAGE}",
            "download img_align_celeba.zip, list_attr_celeba.txt and list_eval_partition.txt from the drive it links",
            "unpack the first so that img_align_celeba and the two lists are in {folder}",
        ),
        counts={"train": 162_770, "validation": 19_867, "test": 19_962},
    )

    def __init__(
        self,
        data_root: str,
        *,
        tasks: Mapping[str, dict[str, Any]],
        path: str,
        size: list[PositiveInt],
        fit: Literal["resize", "crop"] = "resize",
        flip: bool = False,
        cache_mb: NonNegativeInt = 256,
    ) -> None:
        super().__init__(data_root, tasks=tasks)
        self.path, self.fit, self.flip = path, fit, flip
        self.size = (size[0], size[-1])
        self._wrong_size = len(size) != 2
        self._cache_bytes = cache_mb * 2**20

    def check(self) -> list[Problem]:
        problems = check_tasks(self.tasks, dict.fromkeys(ATTRIBUTES, Annotation("pooled", "classification")))
        if self._wrong_size:
            problems.append(Problem("'mixture.size' must be [height, width] in pixels"))
        if self.located is None:
            get = f"{self.published.get} and put it at one of these places, or point mixture.path at it"
            see = "runner data prepare celeba"
            problems.append(missing("CelebA", self.path, self.data_root, get, marker=PLACES["labels"][0], see=see))
            return problems
        wanted = ["labels", "partition", *([] if self.decoded.is_file() else ["images"])]
        gone = [" or ".join(PLACES[part]) for part in wanted if self._find(part) is None]
        if gone:
            what = f"CelebA in {self.located} lacks {' and '.join(gone)}"
            problems.append(
                Problem(what, "runner data prepare celeba says where to get it", "runner show mixture/celeba")
            )
        return problems

    def setup(self, pretrained: str | None) -> InputSpec:
        return InputSpec("image", size=self.size)

    def datasets(self, split: Split) -> dict[str, Dataset]:
        names, labels_NA, part_N = self.table
        numbers = np.flatnonzero(part_N == SPLITS.index(split))
        if not len(numbers):
            raise UserError(f"CelebA in {self.located} has no image of the split '{split}'")
        targets = {task: labels_NA[:, ATTRIBUTES.index(task)] for task in self.tasks}
        decoded = self.decoded if self.decoded.is_file() else None
        folder = None if decoded else self._find("images")
        faces = Faces(names, folder, decoded, self.size, self.fit, self._cache_bytes)
        return {"celeba": FaceSet(faces, numbers, targets, self.flip)}

    def picture(self, image: Image, size: tuple[int, int]) -> np.ndarray:
        return pixels(image, size, self.fit)

    @property
    def folder(self) -> str:
        """Where `runner data prepare` puts it, below a root."""
        return self.path

    def count(self) -> dict[str, int]:
        """Split → its number of faces."""
        _, _, part_N = self.table
        return {split: int((part_N == i).sum()) for i, split in enumerate(SPLITS)}

    @property
    def converted(self) -> bool:
        """Whether faces of this size are decoded already."""
        return self.decoded.is_file()

    def convert(self, target: Path, progress: Progress) -> str:
        """Decode all faces at this size into `target`, beside copies of the lists; returns what was done."""
        names, _, _ = self.table
        faces = Faces(names, self._find("images"), None, self.size, self.fit, 0)
        final = target / self.decoded.relative_to(self.located or target)
        final.parent.mkdir(parents=True, exist_ok=True)
        part = final.with_name(f".{final.name}.part")
        made = np.lib.format.open_memmap(part, "w+", np.uint8, (len(names), *self.size, 3))
        for number in range(len(names)):
            made[number] = faces.decode(number)
            progress("faces", number + 1, len(names))
        made.flush()
        del made
        part.replace(final)
        for kind in ("labels", "partition"):
            path = self._find(kind)
            if path is not None and not any((target / place).exists() for place in PLACES[kind]):
                shutil.copyfile(path, target / path.name)
        return f"{len(names):,} faces of {self.size[0]} x {self.size[1]}: {final}"

    @cached_property
    def located(self) -> Path | None:
        """The archive's folder, None where it is not there."""
        return locate(self.path, self.data_root, PLACES["labels"])

    @property
    def decoded(self) -> Path:
        """Where faces of this size lie that were decoded before."""
        name = f"packed/{self.size[0]}x{self.size[1]}-{self.fit}.npy"
        return (self.located or Path(self.path)) / name

    def _find(self, part: str) -> Path | None:
        root = self.located
        found = [root / place for place in PLACES[part] if (root / place).exists()] if root is not None else []
        return found[0] if found else None

    @cached_property
    def table(self) -> tuple[list[str], np.ndarray, np.ndarray]:
        """File names (N), labels (N, 40) float32 of 0 and 1, and the number of each face's split (N).

        Raises:
            UserError: the lists are not there, or not CelebA's, or do not fit one another.
        """
        labels, partition = self._find("labels"), self._find("partition")
        if labels is None or partition is None:
            raise UserError(self.check())
        lines = labels.read_text(encoding="utf-8").splitlines()
        header = [name.lower() for name in lines[1].split()] if len(lines) > 1 else []
        if header != list(ATTRIBUTES):
            raise UserError(f"the second line of {labels} does not name CelebA's 40 attributes", "download it again")
        rows = [line.split() for line in lines[2:] if line.strip()]
        pairs = [line.split() for line in partition.read_text(encoding="utf-8").splitlines()]
        parts = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
        names = [row[0] for row in rows]
        lost = [name for name in names if name not in parts]
        if lost or any(len(row) != 41 for row in rows):
            what = f"{len(lost)} of {len(names)} images are not in {partition}" if lost else f"{labels} is cut short"
            raise UserError(what, "download both lists again")
        values = np.array([row[1:] for row in rows], dtype=np.int8)
        return names, (values > 0).astype(np.float32), np.array([int(parts[name]) for name in names])


class Faces:
    """All faces by number, as (H, W, 3) bytes.

    Args:
        names: files in `folder`. decoded: a .npy file (N, H, W, 3) to read instead; one of the two is None.
        size, fit: see `CelebA`. cache_bytes: what the memory of decoded faces may hold.
    """

    def __init__(
        self,
        names: Sequence[str],
        folder: Path | None,
        decoded: Path | None,
        size: tuple[int, int],
        fit: Literal["resize", "crop"],
        cache_bytes: int,
    ) -> None:
        self.names, self.folder, self.decoded, self.size, self.fit = names, folder, decoded, size, fit
        self._room = cache_bytes // (3 * size[0] * size[1])
        self._cache: dict[int, np.ndarray] = {}
        self._mapped: np.ndarray | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_cache": {}, "_mapped": None}  # every worker fills and maps its own

    def __getitem__(self, number: int) -> np.ndarray:
        if self.decoded is not None:
            if self._mapped is None:
                self._mapped = _map(self.decoded, (len(self.names), *self.size, 3))
            return self._mapped[number]
        found = self._cache.get(number)
        if found is None:
            found = self.decode(number)
            if len(self._cache) < self._room:
                self._cache[number] = found
        return found

    def decode(self, number: int) -> np.ndarray:
        """One face from its file.

        Raises:
            UserError: it is not there, or no image.
        """
        from PIL import Image

        assert self.folder is not None
        path = self.folder / self.names[number]
        try:
            with Image.open(path) as image:
                return bytes_of(image, self.size, self.fit)
        except (OSError, ValueError, SyntaxError) as error:
            raise UserError(f"cannot read {path}: {error}", "unpack img_align_celeba.zip again") from error


def _map(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        faces = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {error}", "remove it, and run: runner data prepare celeba") from error
    if faces.shape != shape or faces.dtype != np.uint8:
        what = f"{path} holds {faces.dtype} {faces.shape}, and not bytes {shape}"
        raise UserError(what, "remove it, and run: runner data prepare celeba")
    return faces


class FaceSet:
    """One split.

    Args:
        numbers: of the faces that belong to it. targets: task → labels of all faces. flip: mirror every second one.
    """

    name = "celeba"

    def __init__(self, faces: Faces, numbers: np.ndarray, targets: Mapping[str, np.ndarray], flip: bool) -> None:
        self.tasks = tuple(targets)
        self._faces, self._numbers, self._targets, self._flip = faces, numbers, dict(targets), flip

    def __len__(self) -> int:
        return len(self._numbers)

    def example(self, index: int, rng: np.random.Generator | None) -> Example:
        """Pixels (3, H, W), and 0 or 1 per task."""
        number = int(self._numbers[index])
        pixels_HW3 = self._faces[number]
        if rng is not None:
            pixels_HW3 = augment(pixels_HW3, rng, 0, self._flip)
        targets = {task: np.asarray(values[number]) for task, values in self._targets.items()}
        return Example({"pixels": scaled(pixels_HW3)}, targets, self._faces.names[number])
