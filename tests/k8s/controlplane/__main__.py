"""`python -m tests.k8s.controlplane`: builds kube-apiserver and etcd into the cache, and says where they are."""

import sys

from tests.k8s.controlplane.build import ControlPlaneMissing, kubernetes_version, programs

if __name__ == "__main__":
    print(f"kube-apiserver {kubernetes_version()} and etcd (minutes on the first run)", flush=True)
    try:
        print(f"ready: {programs()}")
    except ControlPlaneMissing as error:
        sys.exit(str(error))
