"""Small archives in exactly the official formats, filled with numbered noise.

Of every image, the first pixel of each row of the first channel carries what a test wants to find again: row 0 the
label, rows 1 to 3 the image's number in base 256.
"""

import gzip
import hashlib
import io
import pickle
import struct
import tarfile
import zipfile

import numpy as np
from scipy.io import savemat

CIFAR100_NAMES = [f"thing_{label:02d}" for label in range(100)]
CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def labelled(classes, per_class, seed=0):
    """Every label equally often, shuffled."""
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(classes, dtype=np.uint8), per_class))


def images(labels, shape=(3, 32, 32), seed=0):
    """Noise (n, *shape), channels first, tagged with label and number."""
    x = np.random.default_rng(seed).integers(0, 256, (len(labels), *shape), dtype=np.uint8)
    numbers = np.arange(len(labels))
    for row, tag in enumerate((labels, numbers % 256, numbers // 256 % 256, numbers // 65536)):
        x[:, 0, row, 0] = tag
    return x


def number_of(x):
    """The numbers that :func:`images` wrote, from a tensor (n, c, h, w) whose rows are not padded."""
    x = x.long()
    return x[:, 0, 1, 0] + 256 * x[:, 0, 2, 0] + 65536 * x[:, 0, 3, 0]


def tar_gz(members):
    """A .tar.gz of (name, bytes or tarfile.TarInfo) pairs."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        for name, content in members:
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def cifar100_records(labels, seed=0):
    coarse = labels // 5
    return (
        np.column_stack([coarse, labels, images(labels, seed=seed).reshape(len(labels), -1)]).astype(np.uint8).tobytes()
    )


def cifar100_members(train_per_class=20, test_per_class=2):
    folder = "cifar-100-binary"
    return [
        (f"{folder}/train.bin", cifar100_records(labelled(100, train_per_class), seed=1)),
        (f"{folder}/test.bin", cifar100_records(labelled(100, test_per_class, seed=2), seed=2)),
        (f"{folder}/fine_label_names.txt", "\n".join([*CIFAR100_NAMES, ""]).encode()),
        (f"{folder}/coarse_label_names.txt", b"group\n" * 20),
    ]


def cifar10_members(per_class=4):
    folder = "cifar-10-batches-bin"

    def records(seed):
        labels = labelled(10, per_class, seed)
        return np.column_stack([labels, images(labels, seed=seed).reshape(len(labels), -1)]).astype(np.uint8).tobytes()

    # In the official archive, too, the batches do not come in order, and the names end with empty lines.
    numbers = (4, 2, 5, 1, 3)
    batches = [(f"{folder}/data_batch_{number}.bin", records(number)) for number in numbers]
    names = ("\n".join(CIFAR10_NAMES) + "\n\n").encode()
    return [(f"{folder}/batches.meta.txt", names), *batches, (f"{folder}/test_batch.bin", records(9))]


def idx(array):
    """An uncompressed IDX file of unsigned bytes."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + np.ascontiguousarray(array, np.uint8).tobytes()


def idx_pair(per_class, seed):
    """Gzipped images (n, 28, 28) and labels."""
    labels = labelled(10, per_class, seed)
    return gzip.compress(idx(images(labels, (1, 28, 28), seed)[:, 0]), 1), gzip.compress(idx(labels), 1)


def svhn(per_class, seed):
    labels = labelled(10, per_class, seed)
    packed = io.BytesIO()
    digits = np.where(labels == 0, 10, labels)[:, None]
    savemat(packed, {"X": images(labels, seed=seed).transpose(2, 3, 1, 0), "y": digits}, do_compression=True)
    return packed.getvalue()


def zipped(members):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    return packed.getvalue()


def notmnist_part(per_class, seed):
    labels = labelled(10, per_class, seed)
    return {"features": images(labels, (1, 32, 32), seed), "labels": labels}


def notmnist(train=None, test=None, protocol=4):
    parts = {"notmnist_train": train or notmnist_part(20, 1), "notmnist_test": test or notmnist_part(4, 2)}
    return zipped([(f"{name}.pkl", pickle.dumps(part, protocol)) for name, part in parts.items()])


def miniimagenet_part(per_class, seed=0):
    """As facebookresearch/Adversarial-Continual-Learning writes it: lists, sorted by class."""
    labels = np.sort(labelled(100, per_class, seed))
    pictures = images(labels, (3, 84, 84), seed).transpose(0, 2, 3, 1)
    return {"images": list(np.ascontiguousarray(pictures)), "labels": labels.tolist()}


def files_of(stream):
    """Every file that a stream reads: name -> bytes."""
    if stream == "split-cifar100":
        return {"cifar-100-binary.tar.gz": tar_gz(cifar100_members())}
    if stream == "split-miniimagenet":
        return {
            "train.pkl": pickle.dumps(miniimagenet_part(4, 1), 4),
            "test.pkl": pickle.dumps(miniimagenet_part(1, 2), 4),
        }
    files = {
        "cifar-10-binary.tar.gz": tar_gz(cifar10_members()),
        "train_32x32.mat": svhn(20, 3),
        "test_32x32.mat": svhn(4, 4),
        "notmnist.zip": notmnist(),
    }
    for seed, prefix in enumerate(("mnist-train", "mnist-t10k", "fashion-mnist-train", "fashion-mnist-t10k"), start=5):
        pictures, labels = idx_pair(20 if "train" in prefix else 4, seed)
        files[f"{prefix}-images-idx3-ubyte.gz"] = pictures
        files[f"{prefix}-labels-idx1-ubyte.gz"] = labels
    return files


def write_mirror(folder, files):
    """A mirror: the files and their SHA256SUMS."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for name, content in files.items():
        (folder / name).write_bytes(content)
        lines.append(f"{hashlib.sha256(content).hexdigest()}  {name}\n")
    (folder / "SHA256SUMS").write_text("".join(lines))
    return folder
