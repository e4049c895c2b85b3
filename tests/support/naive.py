"""Algorithm 1 written down naively from the paper: x0 form, one sample at a time, torch's own Adam. Shares no code with sidlsg.

The only thing taken from outside is the UNet's call; schedule, guidance, losses, updates and averages are spelled out.
"""

from __future__ import annotations

import copy

import torch


class NaiveAlgorithm1:
    def __init__(
        self,
        unet,
        kappas,
        *,
        alpha=1.0,
        t_init=625,
        lr=1e-4,
        adam_eps=1e-8,
        clip=None,
        batch=8,
        half_life=50_000,
        ramp_up=0.05,
        v=False,
    ):
        self.phi, self.psi, self.theta = (copy.deepcopy(unet) for _ in range(3))
        self.phi.requires_grad_(False)
        self.k1, self.k2, self.k3, self.k4 = kappas
        self.alpha, self.t_init, self.batch, self.v = alpha, t_init, batch, v
        self.clip = clip
        self.half_life, self.ramp_up, self.seen = half_life, ramp_up, 0
        self.adam_psi = torch.optim.Adam(self.psi.parameters(), lr=lr, betas=(0.0, 0.999), eps=adam_eps)
        self.adam_theta = torch.optim.Adam(self.theta.parameters(), lr=lr, betas=(0.0, 0.999), eps=adam_eps)
        betas = [(0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * i / 999) ** 2 for i in range(1000)]
        self.alpha_bar = []
        product = 1.0
        for beta in betas:
            product *= 1 - beta
            self.alpha_bar.append(product)
        self.average = {n: p.detach().clone() for n, p in self.theta.named_parameters()}

    def f(self, net, x_t, t, c, empty, kappa):
        """f_kappa = f(∅) + kappa (f(c) - f(∅)), always with both passes (Eq. 6)."""
        a, sigma = self.alpha_bar[t] ** 0.5, (1 - self.alpha_bar[t]) ** 0.5

        def x0(text):
            out = net(x_t, torch.tensor([t]), text).sample
            return a * x_t - sigma * out if self.v else (x_t - sigma * out) / a

        without, with_c = x0(empty), x0(c)
        return without + kappa * (with_c - without)

    def generate(self, z, c, empty):
        sigma = (1 - self.alpha_bar[self.t_init]) ** 0.5
        return self.f(self.theta, sigma * z, self.t_init, c, empty, 1.0)

    def fake_score_step(self, z, c, t, eps, empty):
        total = 0.0
        self.adam_psi.zero_grad()
        for i in range(self.batch):
            s, ti = slice(i, i + 1), int(t[i])
            a, sigma = self.alpha_bar[ti] ** 0.5, (1 - self.alpha_bar[ti]) ** 0.5
            x_g = self.generate(z[s], c[s], empty).detach()
            x_t = a * x_g + sigma * eps[s]
            loss = a**2 / sigma**2 * ((self.f(self.psi, x_t, ti, c[s], empty, self.k1) - x_g) ** 2).sum()  # Eq. 7
            (loss / self.batch).backward()
            total += loss.item()
        self.adam_psi.step()
        return total / self.batch

    def generator_step(self, z, c, t, eps, empty):
        total = 0.0
        self.adam_theta.zero_grad()
        for i in range(self.batch):
            s, ti = slice(i, i + 1), int(t[i])
            a, sigma = self.alpha_bar[ti] ** 0.5, (1 - self.alpha_bar[ti]) ** 0.5
            x_g = self.generate(z[s], c[s], empty)
            x_t = a * x_g + sigma * eps[s]
            f_phi = self.f(self.phi, x_t, ti, c[s], empty, self.k4)
            f_psi2 = self.f(self.psi, x_t, ti, c[s], empty, self.k2)
            f_psi3 = self.f(self.psi, x_t, ti, c[s], empty, self.k3)
            size = x_g.numel()
            omega = sigma**4 / a**2 * size / (x_g - f_phi).detach().abs().sum()  # Eq. 9
            if self.alpha == 1.0:
                inner = ((f_phi - f_psi2) * (f_psi3 - x_g)).sum()
            else:
                inner = ((f_phi - f_psi2) * ((f_phi - x_g) - self.alpha * (f_phi - f_psi3))).sum()
            loss = omega * a**2 / sigma**4 * inner  # Eq. 8
            (loss / self.batch).backward()
            total += loss.item()
        if self.clip is not None:
            for p in self.theta.parameters():
                p.grad = torch.minimum(torch.maximum(p.grad, torch.tensor(-self.clip)), torch.tensor(self.clip))
        self.adam_theta.step()
        half_life = self.half_life if self.ramp_up is None else min(self.half_life, self.ramp_up * self.seen)
        keep = 0.5 ** (self.batch / half_life) if half_life > 0 else 0.0
        for name, p in self.theta.named_parameters():
            self.average[name] = keep * self.average[name] + (1 - keep) * p.detach()
        self.seen += self.batch
        return total / self.batch
