//! The Kubernetes container runtime interface of containerd, as a kubelet calls it.

mod grpc;
mod messages;

use std::collections::HashMap;

use anyhow::{Context, Result};
use serde_json::Value;

use self::messages as m;
use crate::{BUSYBOX, Containerd, Output, Process, Runtime, task, unique_id};

/// A containerd with the CRI plugin, and the calls of its runtime service. Pods use the host's network, so no CNI is needed.
#[derive(Debug)]
pub struct Cri {
    containerd: Containerd,
}

/// A pod's sandbox.
#[derive(Clone, Debug)]
pub struct Pod {
    /// The sandbox's id.
    pub id: String,
    /// The pod's name, in the namespace `default`.
    pub name: String,
    /// The pod's uid.
    pub uid: String,
    config: m::PodSandboxConfig,
}

impl Cri {
    /// Starts one that executes the installed runc.
    ///
    /// # Errors
    /// When containerd is not installed or does not start.
    pub fn start() -> Result<Self> {
        Ok(Self { containerd: Containerd::start_cri(None)? })
    }

    /// Starts one that executes this copy of a runtime.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub fn start_with(runtime: &Runtime) -> Result<Self> {
        Ok(Self { containerd: Containerd::start_cri(Some(runtime))? })
    }

    /// The containerd behind it. Its CRI containers are in the namespace `k8s.io`, not in its own.
    #[must_use]
    pub fn containerd(&self) -> &Containerd {
        &self.containerd
    }

    /// `RunPodSandbox`: creates and starts the sandbox's container.
    ///
    /// # Errors
    /// As all calls: with the code and message of the service.
    pub fn run_pod(&self, name: &str) -> Result<Pod> {
        let uid = unique_id("uid");
        let metadata = m::PodSandboxMetadata {
            name: name.into(),
            uid: uid.clone(),
            namespace: "default".into(),
            attempt: 0,
        };
        let namespaces = m::NamespaceOption { network: m::NODE, ..m::NamespaceOption::default() };
        let security_context = Some(m::LinuxSandboxSecurityContext { namespace_options: Some(namespaces) });
        let cgroup_parent = format!("/{}", self.containerd.namespace());
        let config = m::PodSandboxConfig {
            metadata: Some(metadata),
            log_directory: self.containerd.logs().to_string_lossy().into_owned(),
            labels: HashMap::from([
                ("io.kubernetes.pod.name".into(), name.into()),
                ("io.kubernetes.pod.namespace".into(), "default".into()),
                ("io.kubernetes.pod.uid".into(), uid.clone()),
            ]),
            linux: Some(m::LinuxPodSandboxConfig { cgroup_parent, security_context }),
            ..m::PodSandboxConfig::default()
        };
        let request =
            m::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let answer: m::RunPodSandboxResponse = self.call("RunPodSandbox", &request)?;
        Ok(Pod { id: answer.pod_sandbox_id, name: name.into(), uid, config })
    }

    /// `CreateContainer`, of the image [`BUSYBOX`]: executes nothing yet. Returns the id.
    ///
    /// # Errors
    /// As all calls.
    pub fn create_container(&self, pod: &Pod, name: &str, command: &[&str]) -> Result<String> {
        let config = m::ContainerConfig {
            metadata: Some(m::ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(m::ImageSpec { image: BUSYBOX.into() }),
            command: command.iter().map(ToString::to_string).collect(),
            labels: HashMap::from([("io.kubernetes.container.name".into(), name.into())]),
            log_path: format!("{name}.log"),
            ..m::ContainerConfig::default()
        };
        let request = m::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        Ok(self.call::<_, m::CreateContainerResponse>("CreateContainer", &request)?.container_id)
    }

    /// `StartContainer`: creates and starts it by the runtime.
    ///
    /// # Errors
    /// As all calls.
    pub fn start_container(&self, id: &str) -> Result<()> {
        self.call("StartContainer", &m::ById::new(id)).map(|_: m::Nothing| ())
    }

    /// `StopContainer`, killed after `grace` seconds.
    ///
    /// # Errors
    /// As all calls.
    pub fn stop_container(&self, id: &str, grace: i64) -> Result<()> {
        let request = m::StopContainerRequest { container_id: id.into(), timeout: grace };
        self.call("StopContainer", &request).map(|_: m::Nothing| ())
    }

    /// `RemoveContainer`.
    ///
    /// # Errors
    /// As all calls.
    pub fn remove_container(&self, id: &str) -> Result<()> {
        self.call("RemoveContainer", &m::ById::new(id)).map(|_: m::Nothing| ())
    }

    /// `StopPodSandbox`.
    ///
    /// # Errors
    /// As all calls.
    pub fn stop_pod(&self, pod: &Pod) -> Result<()> {
        self.call("StopPodSandbox", &m::ById::new(&pod.id)).map(|_: m::Nothing| ())
    }

    /// `RemovePodSandbox`.
    ///
    /// # Errors
    /// As all calls.
    pub fn remove_pod(&self, pod: &Pod) -> Result<()> {
        self.call("RemovePodSandbox", &m::ById::new(&pod.id)).map(|_: m::Nothing| ())
    }

    /// `ExecSync`: standard output, standard error, exit code.
    ///
    /// # Errors
    /// As all calls.
    pub fn exec_sync(&self, id: &str, command: &[&str]) -> Result<(String, String, i32)> {
        let cmd = command.iter().map(ToString::to_string).collect();
        let request = m::ExecSyncRequest { container_id: id.into(), cmd, timeout: 60 };
        let answer: m::ExecSyncResponse = self.call("ExecSync", &request)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((text(&answer.stdout), text(&answer.stderr), answer.exit_code))
    }

    /// The exit code of a container that has ended, by `ContainerStatus`.
    ///
    /// # Errors
    /// As all calls.
    pub fn exit_code(&self, id: &str) -> Result<Option<i32>> {
        let status = self.status(id)?.status.context("ContainerStatus answered without a status")?;
        Ok((status.state == m::EXITED).then_some(status.exit_code))
    }

    /// The init of a running container, by `ContainerStatus`.
    ///
    /// # Errors
    /// As all calls.
    pub fn init(&self, id: &str) -> Result<Process> {
        init_of(&self.status(id)?.info)
    }

    /// The init of a pod's sandbox, by `PodSandboxStatus`.
    ///
    /// # Errors
    /// As all calls.
    pub fn pod_init(&self, pod: &Pod) -> Result<Process> {
        let request = m::StatusRequest { id: pod.id.clone(), verbose: true };
        init_of(&self.call::<_, m::PodSandboxStatusResponse>("PodSandboxStatus", &request)?.info)
    }

    /// `ctr` for the namespace of CRI containers.
    ///
    /// # Errors
    /// When it fails.
    pub fn ctr(&self, args: &[&str]) -> Result<Output> {
        // The later of two -n counts.
        task::run(self.containerd.ctr(["-n", crate::containerd::CRI_NAMESPACE]).args(args))?.ok()
    }

    fn status(&self, id: &str) -> Result<m::ContainerStatusResponse> {
        self.call("ContainerStatus", &m::StatusRequest { id: id.into(), verbose: true })
    }

    fn call<Q: prost::Message, A: prost::Message + Default>(&self, method: &str, request: &Q) -> Result<A> {
        let path = format!("/runtime.v1.RuntimeService/{method}");
        let answer = grpc::call(&self.containerd.socket(), &path, &request.encode_to_vec())?;
        A::decode(answer.as_slice()).with_context(|| format!("decoding the answer to {method}"))
    }
}

/// containerd's verbose answers hold JSON under `info`, with the pid in it.
fn init_of(info: &HashMap<String, String>) -> Result<Process> {
    let text = info.get("info").context("containerd gave no verbose information")?;
    let json: Value = serde_json::from_str(text)?;
    let pid = json["pid"].as_i64().with_context(|| format!("no pid in {text}"))?;
    Ok(Process(pid as i32))
}
