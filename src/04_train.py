"""Train a network on a dataset of windows: <out-dir>/best.pt, last.pt, metrics.jsonl.

The model config says which network and which heads (energy, jump), the train config how; loss
terms, schedules and units are explained in configs/train.yaml.  best.pt holds the averaged
weights with the lowest validation loss, last.pt what --resume needs.  Ctrl-C ends the step in
progress and writes both.  Several processes or GPUs share each batch:
torchrun --nproc_per_node 2 src/04_train.py ...

    python src/04_train.py --dataset data/qm/dataset_k8.npz --model-config configs/model_pair_mlp.yaml \\
        --train-config configs/train_pair_mlp.yaml --splits data/splits/train.json data/splits/val.json
"""

from kstep.cli import train
from utils import run_script

if __name__ == "__main__":
    run_script(train, __doc__, "04")
