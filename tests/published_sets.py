"Files as the programs of the field write them: one function for each format, called with a folder, images and labels."

import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from ddrobust_nb.foundations.data import Spec, make_data
from ddrobust_nb.foundations.core import generator

GOLDEN = Path(os.environ.get("DDROBUST_GOLDEN", "/nowhere/golden"))
FOREIGN = Path(os.environ.get("DDROBUST_FOREIGN", GOLDEN.parent / "data" / "foreign"))  # Real files
MEAN = (0.45, 0.5, 0.55)
STD = (0.2, 0.25, 0.3)
CLASSES = 4
IPC = 2
SIZE = 8
SPEC = Spec("tiny", CLASSES, SIZE, 3, MEAN, STD, ("ant", "bee", "cat", "dog"))


def smooth(n, seed):
    "Smooth coloured images about the mean of `SPEC`, with its contrast"
    small = torch.rand(n, 3, 4, 4, generator=generator(seed, "smooth"))
    x = torch.nn.functional.interpolate(small, size=SIZE, mode="bilinear")
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
    x = x * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1)
    return x.clamp(0, 1)


def tiny_world():
    "Data whose training pixels have about the mean and deviation of `SPEC`"
    train = (smooth(200, 1) * 255).round().to(torch.uint8)
    labels = torch.arange(200) % CLASSES
    return make_data(SPEC, train, labels, train[:40], labels[:40])


PIXELS = smooth(CLASSES * IPC, 0)
LABELS = torch.arange(CLASSES).repeat_interleave(IPC)


def normalised(x=PIXELS):
    return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def dc(folder, x, y):
    other = x.flip(3)
    data = [[other, y], [other * 0.9, y], [x, y]]
    torch.save(
        {"data": data, "accs_all_exps": {"ConvNet": [np.float64(0.28)]}}, folder / "res_DC_tiny_2ipc.pt"
    )
    return folder / "res_DC_tiny_2ipc.pt"


def mtt(folder, x, y):
    torch.save(x, folder / "images_best.pt")
    torch.save(y, folder / "labels_best.pt")
    torch.save(x.flip(3), folder / "images_100.pt")
    torch.save(y, folder / "labels_100.pt")
    return folder


def dd_ranking(folder, x, y):
    torch.save(x.requires_grad_(), folder / "images.pt")
    torch.save(y, folder / "labels.pt")
    torch.save(torch.tensor(0.02), folder / "lr.pt")
    return folder / "images.pt"


def named_pair(folder, x, y):
    torch.save(x, folder / "DC_tiny_IPC2_images.pt")
    torch.save(y, folder / "DC_tiny_IPC2_labels.pt")
    return folder / "DC_tiny_IPC2_images.pt"


def in_parts(folder, x, y):
    for k, (part_x, part_y) in enumerate(zip(x.split(3), y.split(3))):
        torch.save(part_x, folder / f"images_best_{k}.pt")
        torch.save(part_y, folder / f"labels_best_{k}.pt")
    return folder


def dictionary(folder, x, y):
    torch.save(
        OrderedDict(x_syn=torch.nn.Parameter(x, requires_grad=x.is_floating_point()), y_syn=y, epoch=3),
        folder / "set.pth",
    )
    return folder / "set.pth"


def idc(folder, x, y):
    torch.save([x, y], folder / "data.pt")
    return folder


def idm(folder, x, y):
    "Pickled without torch.save, as IDM does it"
    with open(folder / "acc_0.5.pkl", "wb") as file:
        pickle.dump((x, y), file)
    return folder / "acc_0.5.pkl"


def dd(folder, x, y):
    steps = [(x.flip(3), y, torch.tensor(0.1)), (x, y, torch.tensor(0.02))]
    torch.save(steps, folder / "results.pth")
    return folder / "results.pth"


def kip(folder, x, y):
    one_hot = torch.nn.functional.one_hot(y, CLASSES).numpy() - 1 / CLASSES
    np.savez(folder / "kip.npz", images=x.permute(0, 2, 3, 1).numpy(), labels=one_hot)
    return folder / "kip.npz"


def arrays(folder, x, y):
    np.save(folder / "images.npy", np.asfortranarray(x.detach().numpy()))
    np.save(folder / "labels.npy", y.numpy().astype(np.int32))
    return folder / "images.npy"


def named_arrays(folder, x, y):
    np.savez_compressed(folder / "set.npz", x_train=x.detach().numpy(), y_train=y.numpy().astype(np.uint8))
    return folder / "set.npz"


def any_names(folder, x, y):
    save_file({"a": x.detach().contiguous(), "b": y}, folder / "mystery.safetensors")
    return folder / "mystery.safetensors"


TENSORS = [
    dc,
    mtt,
    dd_ranking,
    named_pair,
    in_parts,
    dictionary,
    idc,
    idm,
    dd,
    kip,
    arrays,
    named_arrays,
    any_names,
]


def class_folders(folder, x, y, name="new{:03d}"):
    "PNG files of bytes"
    for k, image in enumerate(x):
        place = folder / name.format(int(y[k]))
        place.mkdir(exist_ok=True)
        array = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(array).save(place / f"class{int(y[k]):03d}_id{k:03d}.png")
    return folder
