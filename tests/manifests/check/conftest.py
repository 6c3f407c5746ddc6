import copy
from typing import Any

import pytest
import yaml

# A namespace and a service without problems.
VALID = """
apiVersion: v1
kind: Namespace
metadata:
  name: songs
  labels: {pod-security.kubernetes.io/enforce: restricted, pod-security.kubernetes.io/enforce-version: v1.34}
---
apiVersion: v1
kind: ResourceQuota
metadata: {name: all, namespace: songs}
spec: {hard: {pods: "9"}}
---
apiVersion: v1
kind: LimitRange
metadata: {name: all, namespace: songs}
spec: {limits: [{type: Container, max: {cpu: "4"}}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: songs}
spec: {podSelector: {}, policyTypes: [Ingress, Egress]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: itself, namespace: songs}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Egress]
  egress:
    - to: [{podSelector: {matchLabels: {app: web}}}]
      ports: [{protocol: TCP, port: http}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: songs}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: storage, namespace: songs}
data: {bucket: songs}
---
apiVersion: external-secrets.io/v1
kind: ExternalSecret
metadata: {name: login, namespace: songs}
spec:
  refreshInterval: 1h
  secretStoreRef: {kind: ClusterSecretStore, name: company}
  target: {name: login}
  data: [{secretKey: word, remoteRef: {key: songs/login, property: word}}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: songs}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata: {name: web, namespace: songs}
spec: {maxUnavailable: 1, selector: {matchLabels: {app: web}}}
---
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web, namespace: songs}
spec: {scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}, maxReplicas: 3}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: look, namespace: songs}
rules: [{apiGroups: [""], resources: [pods], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: look, namespace: songs}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: look}
subjects: [{kind: ServiceAccount, name: web, namespace: songs}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: songs}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      serviceAccountName: web
      automountServiceAccountToken: false
      securityContext: {runAsNonRoot: true, runAsUser: 10001, seccompProfile: {type: RuntimeDefault}}
      containers:
        - name: web
          image: registry.example.com/web:1.2
          ports: [{name: http, containerPort: 8000}]
          env:
            - {name: BUCKET, valueFrom: {configMapKeyRef: {name: storage, key: bucket}}}
            - {name: PASSWORD, valueFrom: {secretKeyRef: {name: login, key: word}}}
          readinessProbe: {httpGet: {path: /readyz, port: http}}
          resources: {requests: {cpu: 100m, memory: 128Mi}, limits: {cpu: "1", memory: 256Mi}}
          securityContext:
            {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
          volumeMounts: [{name: tmp, mountPath: /tmp}]
      volumes: [{name: tmp, emptyDir: {sizeLimit: 1Gi}}]
"""

# A training runtime with the same pod; it has a schema of Kubeflow Trainer.
RUNTIME = """
apiVersion: trainer.kubeflow.org/v1alpha1
kind: TrainingRuntime
metadata: {name: torch, namespace: songs, labels: {trainer.kubeflow.org/framework: torch}}
spec:
  mlPolicy: {numNodes: 1, torch: {}}
  template: {spec: {replicatedJobs: [{name: node, template: {spec: {template: null}}}]}}
"""


class Tree:
    """A build that tests modify: `tree["Deployment"]` is its last object of that kind."""

    def __init__(self, objects: list[dict[str, Any]]) -> None:
        self.objects = objects

    def __getitem__(self, kind: str) -> dict[str, Any]:
        return [one for one in self.objects if one["kind"] == kind][-1]

    @property
    def pod(self) -> dict[str, Any]:
        return self["Deployment"]["spec"]["template"]["spec"]

    @property
    def container(self) -> dict[str, Any]:
        return self.pod["containers"][0]


@pytest.fixture
def tree() -> Tree:
    """Objects without problems, including the training runtime."""
    objects = list(yaml.safe_load_all(VALID))
    runtime = yaml.safe_load(RUNTIME)
    template = copy.deepcopy(objects[-1]["spec"]["template"])
    template["metadata"]["labels"] = {"app": "trainer"}
    runtime["spec"]["template"]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"] = template
    return Tree([*objects, runtime])
