"An attack is found when only one module was imported: the registry fills itself."

import subprocess
import sys

import pytest

NET = """
import torch
from ddrobust_nb.foundations.data import digits
net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 10)).eval()
data = digits()
x, y = data.test_images[:4] / 255, data.test_labels[:4]
"""
USES = {
    "the one that runs attacks": f"""from ddrobust_nb.attacks.running import attack_images
from ddrobust_nb.attacks.attack import AttackConfig
{NET}
print(len(attack_images(net, x, y, AttackConfig("pgd", "2/255", steps=2), device="cpu").flags))""",
    "the one that reads their names": """from ddrobust_nb.attacks.attack import parse_attack, find_attack
print(len([find_attack(parse_attack(name + "@2/255").attack) for name in ("fgsm", "pgd", "square", "fab-t")]))""",
    "the registry": """from ddrobust_nb.attacks.attack import attack
print(len([attack[name] for name in ("pgd", "cw", "apgd-ce", "autoattack")]))""",
    "evaluate": f"""from ddrobust_nb.attacks.robustness import evaluate
{NET}
print(len(evaluate(net, data, "fgsm@2/255,pgd@2/255@1,cw@2/255@1,fgsm@1/255", n_test=10, device="cpu")))""",
}


@pytest.mark.parametrize("only", USES)
def test_an_attack_is_there_when_only_one_module_was_imported(only):
    done = subprocess.run([sys.executable, "-c", USES[only]], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "4"
