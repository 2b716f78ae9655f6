"""MLflow's artifacts in S3, always through MLflow itself.

MLflow's own class for S3 makes the server tell clients that they may fetch files straight from the store, by signed addresses. Those carry the name by
which the server knows the store, which is of the containers' network, or of a machine's loopback: a client elsewhere cannot reach it, and a plain
``mlflow artifacts download`` would fail. No setting of the server keeps it from saying so; that this class signs nothing does.

``scanvit_store-1.dist-info`` beside it is how MLflow finds the class for the scheme s3 (its entry points ``mlflow.artifact_repository``).
"""

from typing import Any

from mlflow.entities import FileInfo
from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository


class ProxiedS3ArtifactRepository(ArtifactRepository):
    def __init__(self, artifact_uri: str, *args: Any, **kwargs: Any) -> None:
        super().__init__(artifact_uri, *args, **kwargs)
        self._s3 = S3ArtifactRepository(artifact_uri, *args, **kwargs)

    def log_artifact(self, local_file: str, artifact_path: str | None = None) -> None:
        self._s3.log_artifact(local_file, artifact_path)

    def log_artifacts(self, local_dir: str, artifact_path: str | None = None) -> None:
        self._s3.log_artifacts(local_dir, artifact_path)

    def list_artifacts(self, path: str | None = None) -> list[FileInfo]:
        return self._s3.list_artifacts(path)

    def delete_artifacts(self, artifact_path: str | None = None) -> None:
        self._s3.delete_artifacts(artifact_path)

    def _download_file(self, remote_file_path: str, local_path: str) -> None:
        self._s3._download_file(remote_file_path, local_path)
