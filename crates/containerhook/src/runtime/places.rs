//! Where runtimes lie when nobody says anything else.
//!
//! Directories and names are multiplied: a name is looked for in every directory. That finds more than a list
//! of paths, and costs one walk for each directory that is there.

/// What an OCI runtime is called, wherever it lies.
pub(crate) const RUNTIMES: &[&str] = &[
    "runc",
    "crun",
    "youki",
    "runsc",
    "kata-runtime",
    "sysbox-runc",
    "urunc",
    // crun by other names, with another handler.
    "crun-wasm",
    "crun-vm",
    "krun",
    // Docker's own packages before 18.09, RHEL 7, and balenaOS.
    "docker-runc",
    "docker-runc-current",
    "balena-runc",
    "balena-engine-runc",
    // Release files put down as they were downloaded.
    "runc.amd64",
    "runc.arm64",
    // Wrappers that execute one of the above.
    "oci-runtime",
    "nvidia-container-runtime",
    "nvidia-container-runtime.cdi",
    "nvidia-container-runtime.legacy",
    "nvidia-container-runtime.experimental",
    "amd-container-runtime",
];

/// What stands between Podman or CRI-O and the runtime. `conmon-rs` is not among them: it is a server that
/// CRI-O talks to by a socket, and no container's name is on its command line.
pub(crate) const MONITORS: &[&str] = &["conmon"];

/// Where a name without a slash is looked for, as an engine's PATH usually has it.
pub(crate) const PATH: &[&str] = &[
    "/usr/local/sbin",
    "/usr/local/bin",
    "/usr/sbin",
    "/usr/bin",
    "/sbin",
    "/bin",
    "/run/current-system/sw/bin",
];

/// Directories of programs, by whose they are. Symbolic links in them are followed under the host's root, so a
/// distribution that links `/bin` to `/usr/bin`, or `/usr/sbin/runc` to `../bin/runc`, needs no second entry.
pub(crate) const DIRECTORIES: &[&str] = &[
    // Debian, Ubuntu, Fedora, RHEL, SUSE, Arch, Alpine, Gentoo, Amazon Linux, COS, Talos.
    "/bin",
    "/sbin",
    "/usr/bin",
    "/usr/sbin",
    "/usr/lib/docker",
    "/usr/libexec/docker",
    // What is built from source, Docker's static bundles, Cluster API's images.
    "/usr/local/bin",
    "/usr/local/sbin",
    "/usr/local/libexec",
    "/opt/bin",
    "/opt/sbin",
    "/opt/*/bin",
    "/opt/*/sbin",
    "/opt/*/usr/local/sbin",
    "/home/linuxbrew/.linuxbrew/bin",
    // CRI-O: Debian's package, upstream's packages and bundle.
    "/usr/lib/cri-o-runc/sbin",
    "/usr/libexec/crio",
    "/usr/local/libexec/crio",
    "/usr/lib/crio/bin",
    "/usr/lib/cri-o/bin",
    // Podman.
    "/usr/libexec/podman",
    "/usr/lib/podman",
    "/usr/local/lib/podman",
    "/usr/local/libexec/podman",
    // NixOS and Guix: the system's profile, users' profiles; the store is among the patterns.
    "/run/current-system/sw/bin",
    "/run/current-system/profile/bin",
    "/run/current-system/profile/sbin",
    "/nix/var/nix/profiles/default/bin",
    "/etc/profiles/per-user/*/bin",
    "/root/.nix-profile/bin",
    // k3s, RKE2, k0s.
    "/var/lib/rancher/k3s/data/current/bin",
    "/var/lib/rancher/k3s/data/*/bin",
    "/var/lib/rancher/rke2/bin",
    "/var/lib/rancher/rke2/data/*/bin",
    "/var/lib/k0s/bin",
    // Snaps: MicroK8s, Canonical Kubernetes, Docker; Fedora mounts them elsewhere.
    "/snap/microk8s/current/bin",
    "/snap/microk8s/current/usr/bin",
    "/snap/k8s/current/bin",
    "/snap/docker/current/bin",
    "/snap/docker/current/sbin",
    "/snap/docker/current/usr/bin",
    "/snap/kata-containers/current/usr/bin",
    "/var/lib/snapd/snap/microk8s/current/bin",
    "/var/lib/snapd/snap/microk8s/current/usr/bin",
    "/var/lib/snapd/snap/k8s/current/bin",
    "/var/lib/snapd/snap/docker/current/bin",
    // Flatcar: torcx before 2024; system extensions since then lie over /usr.
    "/run/torcx/unpack/docker/bin",
    // Bottlerocket, as seen from its host containers.
    "/aarch64-bottlerocket-linux-gnu/sys-root/usr/bin",
    "/x86_64-bottlerocket-linux-gnu/sys-root/usr/bin",
    // Google's Kubernetes nodes, and NVIDIA's GPU operator.
    "/home/kubernetes/bin",
    "/home/containerd/usr/local/sbin",
    "/usr/local/nvidia/toolkit",
    "/run/nvidia/driver/usr/bin",
    // Synology.
    "/var/packages/ContainerManager/target/usr/bin",
    "/var/packages/Docker/target/usr/bin",
];

/// Patterns of whole paths, where a directory alone would say too little.
pub(crate) const RUNTIME_PATTERNS: &[&str] = &[
    // NixOS gives engines a PATH of store paths, which is in no profile.
    "/nix/store/*-runc-*/bin/runc",
    "/nix/store/*-crun-*/bin/crun",
    "/nix/store/*-youki-*/bin/youki",
    "/nix/store/*-gvisor-*/bin/runsc",
    // krun and the other handlers of crun have names of their own in some packages.
    "/usr/bin/crun-*",
    "/usr/libexec/crio/crun-*",
];

/// The same, of monitors.
pub(crate) const MONITOR_PATTERNS: &[&str] = &["/nix/store/*-conmon-[0-9]*/bin/conmon"];
